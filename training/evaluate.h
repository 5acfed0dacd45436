// The loss on held-out samples. One thread, which enters OpenMP.
#pragma once

#include <cstdint>
#include <functional>

#include "core/status.h"
#include "model/model.h"
#include "parallel/layout.h"
#include "training/sample_stream.h"

namespace cadre {

// A part of the mean cross entropy per loss token over samples [0, count), without gradients: that
// of the microbatches rank, rank + ranks, ... The parts of all ranks add up to the mean. Every rank
// runs equally many, full ones; rows over `count` are others again and count nothing. Over pipeline
// stages the last one has the loss, the others 0.
struct EvaluationPart {
  int64_t count = 0, micro = 1;
  int64_t rank = 0, ranks = 1;
  // Called before the first microbatch and now and then before another (ShardedWeights::Begin).
  std::function<void()> begin_passes;
};
absl::StatusOr<double> EvaluateLoss(Context& ctx, const Model& model, SampleStream& stream,
                                    const EvaluationPart& part, const Layout& layout);

}  // namespace cadre
