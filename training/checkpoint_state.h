// What of a run a checkpoint keeps; shared by saving and loading.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/parameters.h"
#include "model/param_layout.h"
#include "training/optimizer.h"

namespace cadre {

inline constexpr std::string_view kMasterSlot = "master";

// One kind of optimizer state, e.g. "exp_avg".
struct StateSlot {
  std::string name;
  std::vector<ParamPiece> pieces;
};

// The tensors of a run as one rank sees them. To save: what this rank hands in, each element by
// exactly one rank of the group. To load: what it wants filled, which every rank asks for by
// itself. All ranks have the same slots in the same order, be they empty.
struct StatePart {
  std::vector<ParamPiece> weights;  // every parameter's, as precise as there is; the master's too
  std::vector<StateSlot> slots;     // beside the master
};

// What a store and its optimizer hold of it; shares their storage. By bucket, `owned` is what the
// optimizer was made with, and `part` what is wanted of all that, so that ranks which hold the same
// save different parts; empty: all of each bucket.
StatePart StateOf(const ParameterStore& store, const Optimizer& optimizer,
                  const std::vector<Shard>& owned = {}, const std::vector<Shard>& part = {});

// Whether a run changes the parameter: trainable ones, and fp32 ones outside the optimizer (the
// router's bias correction).
bool Changes(const ParamSpec& spec);

// The weights that a run changes: what the master slot holds.
StateSlot MasterSlot(const ParameterStore& store, const std::vector<ParamPiece>& weights);

}  // namespace cadre
