#include <algorithm>
#include <cmath>

#include "core/ops/softmax_rows.h"

namespace cadre::ops {
namespace {

double SumExp(std::span<const double> logits, double top) {
  double sum = 0;
  for (double x : logits) sum += std::exp(x - top);
  return sum;
}

// [3, R], of this rank's columns and then of all.
Tensor RowSums(Context& ctx, const CrossEntropyRowsArgs& args) {
  const int64_t rows = args.logits.dim(0), v = args.logits.dim(1);
  Tensor sums = ctx.Empty({3, rows}, DType::kF64);
  double* s = sums.data<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const std::span x(args.logits.data<double>() + r * v, static_cast<size_t>(v));
    const int64_t target = TargetColumn(args, r);
    s[r] = *std::max_element(x.begin(), x.end());
    s[rows + r] = SumExp(x, s[r]);
    s[2 * rows + r] = target < 0 ? 0.0 : x[static_cast<size_t>(target)];
  }
  if (args.combine) args.combine(ctx, sums);
  return sums;
}

}  // namespace

double RowLogSumExp(std::span<const double> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  return top + std::log(SumExp(logits, top));
}

void CrossEntropyRowsReference(Context& ctx, const CrossEntropyRowsArgs& args) {
  const int64_t rows = args.logits.dim(0), v = args.logits.dim(1);
  const Tensor sums = RowSums(ctx, args);
  const double* s = sums.data<double>();
  for (int64_t r = 0; r < rows; ++r) {
    const bool counts = args.targets.data<int32_t>()[r] >= 0;
    const double lse = s[r] + std::log(s[rows + r]);
    args.log_sum_exp.data<double>()[r] = lse;
    args.logprobs.data<double>()[r] = counts ? s[2 * rows + r] - lse : 0.0;
    if (!args.dlogits.defined()) continue;
    const double* x = args.logits.data<double>() + r * v;
    double* dx = args.dlogits.data<double>() + r * v;
    const double slope = counts ? args.scale * (1 + 2 * args.z_coefficient * lse) : 0.0;
    for (int64_t i = 0; i < v; ++i) dx[i] = slope * std::exp(x[i] - lse);
    if (const int64_t target = TargetColumn(args, r); target >= 0) dx[target] -= args.scale;
  }
}

}  // namespace cadre::ops
