#include <cmath>
#include <limits>
#include <vector>

#include "core/ops/compute_types.h"
#include "core/ops/softmax_rows.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/softmax_rows_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/math-inl.h"
#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace {

float RowMax(const float* x, size_t count) {
  const DF df;
  VF top = hn::Set(df, -std::numeric_limits<float>::infinity());
  ForLanes(
      count, [&](size_t i) HWY_ATTR { top = hn::Max(top, Load(x + i)); },
      [&](size_t i, size_t n) HWY_ATTR {
        for (size_t j = i; j < i + n; ++j) top = hn::Max(top, hn::Set(df, x[j]));
      });
  return hn::GetLane(hn::MaxOfLanes(df, top));
}

// The sum of exp(x - top); with kStore each term replaces its x.
template <bool kStore>
float SumExp(float* x, float top, size_t count) {
  const DF df;
  const VF shift = hn::Set(df, top);
  VF sum = hn::Zero(df);
  ForLanes(
      count,
      [&](size_t i) HWY_ATTR {
        const VF e = ExpOf(hn::Sub(Load(x + i), shift));
        if constexpr (kStore) Store(e, x + i);
        sum = hn::Add(sum, e);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF e = ExpOf(hn::Sub(LoadN(x + i, n), shift));
        if constexpr (kStore) StoreN(e, x + i, n);
        sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(df, n), e));
      });
  return hn::GetLane(hn::SumOfLanes(df, sum));
}

float LogSumExp(const float* x, size_t count) {
  const float top = RowMax(x, count);
  return top + std::log(SumExp<false>(const_cast<float*>(x), top, count));
}

template <typename T>
void ScaleRow(const float* x, float factor, T* y, size_t count) {
  const VF f = hn::Set(DF(), factor);
  ForLanes(
      count, [&](size_t i) HWY_ATTR { Store(hn::Mul(Load(x + i), f), y + i); },
      [&](size_t i, size_t n) HWY_ATTR { StoreN(hn::Mul(LoadN(x + i, n), f), y + i, n); });
}

struct RowSum {
  float top, sum, target;  // as CrossEntropyRowsArgs::combine says
};

// Where dlogits is wanted each logit is replaced by exp(logit - top).
RowSum SumRow(const CrossEntropyRowsArgs& args, int64_t r) {
  const int64_t v = args.logits.dim(1), target = TargetColumn(args, r);
  const size_t count = static_cast<size_t>(v);
  float* x = args.logits.data<float>() + r * v;
  const float top = RowMax(x, count), logit = target < 0 ? 0.0f : x[target];
  const float sum =
      args.dlogits.defined() ? SumExp<true>(x, top, count) : SumExp<false>(x, top, count);
  return {top, sum, logit};
}

// `shift`: exp(the columns' maximum - the row's), 1 where the row is not cut.
template <typename T>
void GradRow(const CrossEntropyRowsArgs& args, int64_t r, const RowSum& row, float shift) {
  const int64_t v = args.logits.dim(1), target = TargetColumn(args, r);
  const size_t count = static_cast<size_t>(v);
  const float* x = args.logits.data<float>() + r * v;
  T* dx = args.dlogits.data<T>() + r * v;
  if (args.targets.data<int32_t>()[r] < 0) return ScaleRow(x, 0.0f, dx, count);
  const float lse = args.log_sum_exp.data<float>()[r], scale = static_cast<float>(args.scale);
  const float slope =
      scale * (1.0f + 2.0f * static_cast<float>(args.z_coefficient) * lse) / row.sum * shift;
  ScaleRow(x, slope, dx, count);
  if (target >= 0) dx[target] = static_cast<T>(x[target] * slope - scale);
}

void FinishRow(const CrossEntropyRowsArgs& args, int64_t r, const RowSum& row, float shift) {
  const float lse = row.top + std::log(row.sum);
  args.log_sum_exp.data<float>()[r] = lse;
  args.logprobs.data<float>()[r] = args.targets.data<int32_t>()[r] < 0 ? 0.0f : row.target - lse;
  if (!args.dlogits.defined()) return;
  VisitComputeType("cross_entropy", args.dlogits.dtype(),
                   [&](auto t) { GradRow<decltype(t)>(args, r, row, shift); });
}

template <typename Body>
void ForRows(Context& ctx, const CrossEntropyRowsArgs& args, const Body& body) {
  ParallelFor(ctx, args.logits.dim(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) body(r);
  });
}

void RowsAny(Context& ctx, const CrossEntropyRowsArgs& args) {
  if (!args.combine) {
    return ForRows(ctx, args, [&](int64_t r) { FinishRow(args, r, SumRow(args, r), 1.0f); });
  }
  const int64_t rows = args.logits.dim(0);
  const Tensor sums = ctx.Empty({3, rows}, DType::kF32);
  std::vector<float> tops(static_cast<size_t>(rows));
  float* s = sums.data<float>();
  ForRows(ctx, args, [&](int64_t r) {
    const RowSum own = SumRow(args, r);
    tops[static_cast<size_t>(r)] = s[r] = own.top;
    s[rows + r] = own.sum;
    s[2 * rows + r] = own.target;
  });
  args.combine(ctx, sums);
  ForRows(ctx, args, [&](int64_t r) {
    const RowSum row{s[r], s[rows + r], s[2 * rows + r]};
    FinishRow(args, r, row, std::exp(tops[static_cast<size_t>(r)] - row.top));
  });
}

}  // namespace
}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(LogSumExp);
HWY_EXPORT(RowsAny);

float RowLogSumExp(std::span<const float> logits) {
  return HWY_DYNAMIC_DISPATCH(LogSumExp)(logits.data(), logits.size());
}

void LogSoftmaxRow(std::span<const float> logits, float log_sum_exp, std::span<float> out) {
  for (size_t i = 0; i < logits.size(); ++i) out[i] = logits[i] - log_sum_exp;
}

void CrossEntropyRowsCpu(Context& ctx, const CrossEntropyRowsArgs& args) {
  HWY_DYNAMIC_DISPATCH(RowsAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
