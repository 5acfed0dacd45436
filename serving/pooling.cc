#include "serving/pooling.h"

#include <algorithm>

#include "core/ops/elementwise.h"

namespace cadre {

void PoolHidden(Context& ctx, const ScheduledChunk& chunk, const Tensor& hidden) {
  Sequence& sequence = *chunk.sequence;
  const int64_t prompt = sequence.prompt_tokens();
  const bool mean = sequence.request.pooling == Pooling::kMean;
  const Tensor rows = ops::CastTensor(ctx, hidden, DType::kF32);
  const int64_t width = rows.dim(1);
  sequence.pooled.resize(static_cast<size_t>(width), 0);
  for (int64_t row = 0; row < rows.dim(0); ++row) {
    const float* values = rows.data<float>() + row * width;
    for (int64_t i = 0; i < width; ++i) sequence.pooled[i] += static_cast<double>(values[i]);
  }
  sequence.pooled_tokens = std::min(chunk.end(), prompt);
  if (sequence.pooled_tokens < prompt) return;
  const double count = mean ? static_cast<double>(prompt) : 1;
  std::vector<float>& embedding = sequence.first_event.embedding;
  for (double sum : sequence.pooled) embedding.push_back(static_cast<float>(sum / count));
}

}  // namespace cadre
