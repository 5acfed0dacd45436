// MemoryPlan: what a training run's process will hold at its fullest moment, by what it is for;
// printed before the run starts. Tensors are counted from shapes alone: those that the ops of a
// layer save for the backward pass, the same list for every layer of one kind. What is there before
// the first of them, the program and the open data, is measured.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "core/parameters.h"
#include "core/status.h"
#include "model/decoder_spec.h"
#include "proto/train_config.pb.h"

namespace cadre {

// kInvalidArgument, before anything is allocated, where weights, gradients and optimizer state
// alone are more than this machine has.
absl::Status CheckFits(const config::ModelConfig& model, DType compute);

// Measured while the run opens; bytes.
struct MeasuredMemory {
  int64_t program = 0;  // resident before anything of the run was
  int64_t data = 0;     // what opening the data added (indexes, chats), and the orders to come
};

struct MemoryPlan {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t packed_weights = 0;  // panels of both directions
  int64_t snapshot = 0;        // of an asynchronous checkpoint
  int64_t activations = 0;     // of one microbatch, saved for its backward pass
  int64_t workspace = 0;       // logits, gradients on the way, a tensor on its way to a file
  int64_t idle = 0;            // blocks that the allocator keeps for reuse, at most
  int64_t data = 0;
  int64_t program = 0;

  // In tensors that are alive.
  int64_t tensors() const {
    return weights + gradients + optimizer + packed_weights + snapshot + activations + workspace;
  }
  int64_t total() const { return tensors() + idle + data + program; }
  // One line: "1.2 GiB planned: weights 0.3, gradients 0.6, ...".
  std::string ToString() const;
};

// The store is allocated with gradients.
MemoryPlan PlanTraining(const config::TrainConfig& config, const DecoderSpec& spec,
                        const ParameterStore& store, DType compute, const MeasuredMemory& measured);

}  // namespace cadre
