#include "serving/logit_rows.h"

#include <cstring>

#include "core/ops/elementwise.h"
#include "core/ops/linear_cross_entropy.h"
#include "core/ops/softmax_rows.h"
#include "core/parallel_for.h"
#include "model/decoder.h"

namespace cadre {

Tensor GatherRows(Context& ctx, const Tensor& hidden, std::span<const int64_t> rows) {
  Tensor gathered = ctx.Empty({static_cast<int64_t>(rows.size()), hidden.dim(1)}, hidden.dtype());
  const size_t bytes = static_cast<size_t>(hidden.dim(1)) * SizeOf(hidden.dtype());
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(gathered.raw() + i * bytes, hidden.raw() + rows[i] * bytes, bytes);
  }
  return gathered;
}

LogitRows ComputeLogits(Context& ctx, const Decoder& decoder, const Tensor& hidden) {
  LogitRows rows{ops::CastTensor(ctx, ops::Logits(ctx, hidden, decoder.head()), DType::kF32)};
  rows.lse.resize(rows.logits.dim(0));
  ParallelFor(ctx, rows.logits.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) rows.lse[i] = ops::RowLogSumExp(rows.row(i));
  });
  return rows;
}

}  // namespace cadre
