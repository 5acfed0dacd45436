#include "parallel/combine_ranks.h"

#include <algorithm>
#include <cmath>

namespace cadre {
namespace {

// parts [n, 3, R] -> whole [3, R], in rank order.
template <typename Real>
void FoldSoftmax(const Real* parts, int64_t n, int64_t rows, Real* whole) {
  for (int64_t r = 0; r < rows; ++r) {
    Real top = parts[r], sum = 0, target = 0;
    for (int64_t i = 1; i < n; ++i) top = std::max(top, parts[i * 3 * rows + r]);
    for (int64_t i = 0; i < n; ++i) {
      const Real* part = parts + i * 3 * rows + r;
      sum += part[rows] * std::exp(part[0] - top);
      target += part[2 * rows];
    }
    whole[r] = top;
    whole[rows + r] = sum;
    whole[2 * rows + r] = target;
  }
}

}  // namespace

// The sum lands in a tensor of its own: where it fails, `partial` may not be half summed.
ops::CombineRanks SumOver(Communicator* group, const OpLabel& label) {
  if (GroupSize(group) == 1) return {};
  return [group, label](Context& ctx, const Tensor& partial) {
    Tensor sum = ctx.Empty(partial.shape(), partial.dtype());
    std::copy_n(partial.raw(), partial.bytes(), sum.raw());
    const WorkPtr work = group->AllReduce(sum, ReduceOp::kSum, label);
    if (Landed(ctx, *work, label)) std::copy_n(sum.raw(), sum.bytes(), partial.raw());
  };
}

ops::CombineRanks FoldSoftmaxOver(Communicator* group, const OpLabel& label) {
  if (GroupSize(group) == 1) return {};
  return [group, label](Context& ctx, const Tensor& partial) {
    const int64_t n = group->size(), rows = partial.dim(1);
    Tensor parts = ctx.Empty({n, 3, rows}, partial.dtype());
    const WorkPtr work = group->AllGather(partial, parts, label);
    if (!Landed(ctx, *work, label)) return;
    if (partial.dtype() == DType::kF64) {
      FoldSoftmax(parts.data<double>(), n, rows, partial.data<double>());
    } else {
      FoldSoftmax(parts.data<float>(), n, rows, partial.data<float>());
    }
  };
}

}  // namespace cadre
