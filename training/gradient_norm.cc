#include "training/gradient_norm.h"

#include <algorithm>
#include <cmath>

#include "core/parallel_for.h"
#include "training/adamw_kernels.h"

namespace cadre {
namespace {

// Gradient, master, two moments and weight of one chunk stay in a core's L2 cache.
constexpr int64_t kChunk = 1 << 14;

}  // namespace

std::vector<ParamChunk> TrainableChunks(const ParameterStore& store,
                                        const std::vector<Shard>& owned) {
  std::vector<ParamChunk> chunks;
  for (ParamId id = 0; id < store.size(); ++id) {
    if (!store.WantsGradient(id)) continue;
    int bucket_index = store.bucket_of(id);
    const ParamBucket& bucket = store.buckets()[bucket_index];
    int64_t offset = store.offset_of(id);
    const int64_t end = offset + store.spec(id).shape.numel();
    const Shard part = owned.empty() ? Shard{0, bucket.numel} : owned[bucket_index];
    // Cut where the whole parameter would be, whatever the part.
    for (; offset < end; offset += kChunk) {
      const int64_t first = std::max(offset, part.begin);
      const int64_t last = std::min({offset + kChunk, end, part.end()});
      if (first >= last) continue;
      chunks.push_back(
          {.param = id, .bucket = bucket_index, .offset = first, .numel = last - first});
    }
  }
  return chunks;
}

double SquaredNorm(Context& ctx, const ParameterStore& store,
                   const std::vector<ParamChunk>& chunks) {
  std::vector<double> partial(chunks.size());
  int64_t count = static_cast<int64_t>(chunks.size());
  ParallelFor(ctx, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const ParamChunk& chunk = chunks[i];
      const Tensor gradients =
          store.buckets()[chunk.bucket].GradientsOf({chunk.offset, chunk.numel});
      partial[i] = gradients.dtype() == DType::kF64
                       ? SumSquares(gradients.data<double>(), chunk.numel)
                       : SumSquares(gradients.data<float>(), chunk.numel);
    }
  });
  double sum = 0.0;
  for (double value : partial) sum += value;
  return sum;
}

double ClipFactor(double norm, double max_norm) {
  if (max_norm <= 0.0) return 1.0;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

}  // namespace cadre
