// The gradient norm of what a rank owns, each element counted once in element order: parameters in
// the store's order, each in chunks of a fixed size whose sums of squares (in double) are folded
// left to right. The same bits at any thread count.
#pragma once

#include <cstdint>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "parallel/shard.h"

namespace cadre {

// A run of elements of one trainable parameter, the unit of work of norms and updates. Chunks never
// cross a parameter, so where they are cut depends on the parameter alone.
struct ParamChunk {
  ParamId param = kNoParam;
  int bucket = -1;
  int64_t offset = 0;  // in the bucket, in elements
  int64_t numel = 0;
};

// All trainable parameters that have gradients, in the store's order; of each bucket the part
// owned[bucket] alone, where it is not empty.
std::vector<ParamChunk> TrainableChunks(const ParameterStore& store,
                                        const std::vector<Shard>& owned = {});

// The gradients' sum of squares. Not finite where a gradient is not, or the sum overflows a
// double. Calls OpenMP.
double SquaredNorm(Context& ctx, const ParameterStore& store,
                   const std::vector<ParamChunk>& chunks);

// What gradients are multiplied by to bring their norm to `max_norm` at most, as
// torch.nn.utils.clip_grad_norm_ does: min(1, max_norm / (norm + 1e-6)). 1 where max_norm is 0.
double ClipFactor(double norm, double max_norm);

}  // namespace cadre
