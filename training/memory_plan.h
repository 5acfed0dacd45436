// MemoryPlan: what one rank of a training run will hold at its fullest moment, by what it is for;
// printed before the run starts, and by `cadre plan` without a run. Tensors are counted from shapes
// alone: the rank's buckets or its shards of them, and what the ops of a layer save for the
// backward pass. What is there before the first of them, the program and the open data, is
// measured.
//
// Pure functions, callable from any thread; nothing of the model's size is allocated.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/status.h"
#include "model/decoder_spec.h"
#include "parallel/layout.h"
#include "proto/train_config.pb.h"

namespace cadre {

// Measured while the run opens; bytes.
struct MeasuredMemory {
  int64_t program = 0;  // resident before anything of the run was
  int64_t data = 0;     // what opening the data added (indexes, chats), and the orders to come
};

struct MemoryPlan {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;       // masters and moments
  int64_t packed_weights = 0;  // panels of both directions
  int64_t snapshot = 0;        // of an asynchronous checkpoint
  int64_t activations = 0;     // of all microbatches in flight, saved for their backward passes
  int64_t workspace = 0;       // logits, gradients and whole buckets on the way, a tensor to a file
  int64_t communication = 0;   // rings shared with other ranks, staging of reductions
  int64_t idle = 0;            // blocks that the allocator keeps for reuse, at most
  int64_t data = 0;
  int64_t program = 0;

  // In tensors that are alive.
  int64_t tensors() const {
    return weights + gradients + optimizer + packed_weights + snapshot + activations + workspace;
  }
  // Of them, what the number and the types of the rank's parameters alone decide.
  int64_t state() const { return weights + gradients + optimizer + packed_weights + snapshot; }
  int64_t total() const { return tensors() + communication + idle + data + program; }

  // Every part with its name, in the order above.
  std::vector<std::pair<std::string_view, int64_t>> Parts() const;
  // One line: "1.2 GiB planned: weights 300 MiB, gradients 600 MiB, ...".
  std::string ToString() const;

  friend bool operator==(const MemoryPlan&, const MemoryPlan&) = default;
};

struct PlanArgs {
  const config::TrainConfig& config;
  const DecoderSpec& spec;  // the whole model's
  const Layout& layout;     // of `config`
  DType compute;
  int ranks_on_host = 1;
  MeasuredMemory measured;
};

// kInvalidArgument: as Decoder::Create's.
absl::StatusOr<MemoryPlan> PlanRank(const PlanArgs& args, int rank);

// Ranks that hold equally much.
struct RanksAlike {
  std::vector<int> ranks;  // rising
  MemoryPlan plan;
};
// All ranks of the layout, in the order of their first.
absl::StatusOr<std::vector<RanksAlike>> PlanRanks(const PlanArgs& args);

// kInvalidArgument, with the arithmetic, where weights, gradients and optimizer state of this
// host's ranks, each with as much as `rank`, are more than this machine has.
absl::Status CheckFits(const PlanArgs& args, int rank);

}  // namespace cadre
