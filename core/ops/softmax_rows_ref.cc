#include <algorithm>
#include <cmath>

#include "core/ops/softmax_rows.h"

namespace cadre::ops {

double RowLogSumExp(std::span<const double> logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double x : logits) sum += std::exp(x - top);
  return top + std::log(sum);
}

void CrossEntropyRowsReference(Context&, const CrossEntropyRowsArgs& args) {
  const int64_t rows = args.logits.dim(0), v = args.logits.dim(1);
  for (int64_t r = 0; r < rows; ++r) {
    const double* x = args.logits.data<double>() + r * v;
    const int32_t target = args.targets.data<int32_t>()[r];
    const double lse = RowLogSumExp(std::span(x, static_cast<size_t>(v)));
    args.log_sum_exp.data<double>()[r] = lse;
    args.logprobs.data<double>()[r] = target < 0 ? 0.0 : x[target] - lse;
    if (!args.dlogits.defined()) continue;
    double* dx = args.dlogits.data<double>() + r * v;
    const double slope = target < 0 ? 0.0 : args.scale * (1 + 2 * args.z_coefficient * lse);
    for (int64_t i = 0; i < v; ++i) dx[i] = slope * std::exp(x[i] - lse);
    if (target >= 0) dx[target] -= args.scale;
  }
}

}  // namespace cadre::ops
