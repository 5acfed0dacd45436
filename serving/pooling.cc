#include "serving/pooling.h"

#include <algorithm>

#include "core/ops/elementwise.h"

namespace cadre {

void PoolHidden(Context& ctx, const ScheduledChunk& chunk, const Tensor& hidden,
                int64_t first_row) {
  Sequence& sequence = *chunk.sequence;
  const int64_t prompt = sequence.prompt_tokens();
  const bool mean = sequence.request.pooling == Pooling::kMean;
  const int64_t begin = std::max(chunk.begin, mean ? sequence.pooled_tokens : prompt - 1);
  const int64_t end = std::min(chunk.end(), prompt);
  if (begin >= end) return;
  const Tensor rows = ops::CastTensor(
      ctx, hidden.Narrow(first_row + begin - chunk.begin, end - begin), DType::kF32);
  const int64_t width = rows.dim(1);
  sequence.pooled.resize(static_cast<size_t>(width), 0);
  for (int64_t row = 0; row < end - begin; ++row) {
    const float* values = rows.data<float>() + row * width;
    for (int64_t i = 0; i < width; ++i) sequence.pooled[i] += static_cast<double>(values[i]);
  }
  sequence.pooled_tokens = end;
  if (end < prompt) return;
  const double count = mean ? static_cast<double>(prompt) : 1;
  std::vector<float>& embedding = sequence.first_event.embedding;
  for (double sum : sequence.pooled) embedding.push_back(static_cast<float>(sum / count));
}

}  // namespace cadre
