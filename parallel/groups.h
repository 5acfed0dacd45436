// ParallelGroups: the communicators of one rank by axis of the layout, and the place where ops
// leave a failure.
//
// An op's result is a value, so it cannot return a status. An op whose communication fails records
// the failure here and goes on with zeros of the right shape; whoever runs the step looks at
// `failure` after its forward and backward passes and before it uses anything that they computed.
// A failed group fails every later operation at once, so nothing waits in between.
#pragma once

#include "core/context.h"
#include "core/status.h"
#include "parallel/communicator.h"

namespace cadre {

class FlightRecorder;

// Borrowed; null where the axis is 1. Used by the rank's one computing thread.
struct ParallelGroups {
  Communicator* world = nullptr;
  Communicator* tp = nullptr;          // tensor parallel, attention and dense layers
  Communicator* cp = nullptr;          // context parallel
  bool ring = false;                   // how: see Layout
  Communicator* sequence = nullptr;    // the ranks with different tokens of a sequence
  Communicator* dp = nullptr;          // data parallel
  Communicator* dp_cp = nullptr;       // who sums the gradients of dense parameters
  Communicator* pp = nullptr;          // pipeline
  Communicator* ep = nullptr;          // expert parallel
  Communicator* etp = nullptr;         // tensor parallel inside an expert
  Communicator* edp = nullptr;         // who sums the gradients of expert parameters
  FlightRecorder* recorder = nullptr;  // of what the rank computes; null: nobody watches

  absl::Status failure;  // the first

  void Record(const absl::Status& status) {
    if (failure.ok()) failure = status;
  }
};

// Blocks until `work` is done. False: it failed, which ctx.groups now says.
bool Landed(Context& ctx, Work& work, const OpLabel& label);

inline Communicator* ContextGroup(const Context& ctx) {
  return ctx.groups == nullptr ? nullptr : ctx.groups->cp;
}

inline int GroupSize(const Communicator* group) { return group == nullptr ? 1 : group->size(); }
inline int GroupRank(const Communicator* group) { return group == nullptr ? 0 : group->rank(); }

}  // namespace cadre
