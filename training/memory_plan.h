// MemoryPlan: what a training run will hold at its fullest moment, by what it is for; printed
// before the run starts. Counted from shapes alone: the tensors that the ops of a layer save for
// the backward pass, the same list for every layer of one kind.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "core/parameters.h"
#include "model/decoder_spec.h"
#include "proto/train_config.pb.h"

namespace cadre {

struct MemoryPlan {
  int64_t weights = 0;
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t packed_weights = 0;  // panels of both directions
  int64_t snapshot = 0;        // of an asynchronous checkpoint
  int64_t activations = 0;     // of one microbatch, saved for its backward pass
  int64_t workspace = 0;       // logits, gradients on the way, transposed copies

  int64_t total() const {
    return weights + gradients + optimizer + packed_weights + snapshot + activations + workspace;
  }
  // One line: "1.2 GiB planned: weights 0.3, gradients 0.6, ...".
  std::string ToString() const;
};

// The store is allocated with gradients.
MemoryPlan PlanTraining(const config::TrainConfig& config, const DecoderSpec& spec,
                        const ParameterStore& store, DType compute);

}  // namespace cadre
