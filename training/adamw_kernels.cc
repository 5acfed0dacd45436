#include "training/adamw_kernels.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "training/adamw_kernels.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace simd = cadre::ops::HWY_NAMESPACE;

using simd::DF;
using simd::VF;

double SumSquaresF32(const float* values, int64_t n) {
  const hn::ScalableTag<double> dd;
  const hn::Rebind<float, decltype(dd)> dh;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(dd));
  auto sum0 = hn::Zero(dd), sum1 = hn::Zero(dd), sum2 = hn::Zero(dd), sum3 = hn::Zero(dd);
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const auto x0 = hn::PromoteTo(dd, hn::LoadU(dh, values + i));
    const auto x1 = hn::PromoteTo(dd, hn::LoadU(dh, values + i + lanes));
    const auto x2 = hn::PromoteTo(dd, hn::LoadU(dh, values + i + 2 * lanes));
    const auto x3 = hn::PromoteTo(dd, hn::LoadU(dh, values + i + 3 * lanes));
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
    sum2 = hn::MulAdd(x2, x2, sum2);
    sum3 = hn::MulAdd(x3, x3, sum3);
  }
  double total = hn::GetLane(hn::SumOfLanes(dd, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
  for (; i < n; ++i) total += static_cast<double>(values[i]) * values[i];
  return total;
}

struct UpdateVectors {
  VF gradient, weight, exp_avg, exp_avg_sq;
};

// torch.optim.AdamW, element by element.
HWY_INLINE void UpdateLanes(const AdamWScalars<float>& s, UpdateVectors& x) {
  const DF d;
  const VF g = hn::Mul(x.gradient, hn::Set(d, s.gradient_scale));
  const VF w = hn::Mul(x.weight, hn::Set(d, s.keep));
  x.exp_avg = hn::MulAdd(hn::Set(d, s.beta1_rest), hn::Sub(g, x.exp_avg), x.exp_avg);
  x.exp_avg_sq = hn::MulAdd(hn::Mul(hn::Set(d, s.beta2_rest), g), g,
                            hn::Mul(x.exp_avg_sq, hn::Set(d, s.beta2)));
  const VF denominator =
      hn::Add(hn::Div(hn::Sqrt(x.exp_avg_sq), hn::Set(d, s.root_bias2)), hn::Set(d, s.eps));
  x.weight = hn::NegMulAdd(hn::Set(d, s.step_size), hn::Div(x.exp_avg, denominator), w);
}

void AdamWUpdateF32(const AdamWRun<float>& run, const AdamWScalars<float>& scalars) {
  const AdamWRun<float> r = run;
  const AdamWScalars<float> s = scalars;
  simd::ForLanes(
      static_cast<size_t>(r.n),
      [&](size_t i) HWY_ATTR {
        UpdateVectors x{simd::Load(r.gradient + i), simd::Load(r.weight + i),
                        simd::Load(r.exp_avg + i), simd::Load(r.exp_avg_sq + i)};
        UpdateLanes(s, x);
        simd::Store(x.weight, r.weight + i);
        simd::Store(x.exp_avg, r.exp_avg + i);
        simd::Store(x.exp_avg_sq, r.exp_avg_sq + i);
        if (r.compute_weight != nullptr) simd::Store(x.weight, r.compute_weight + i);
      },
      [&](size_t i, size_t k) HWY_ATTR {
        UpdateVectors x{simd::LoadN(r.gradient + i, k), simd::LoadN(r.weight + i, k),
                        simd::LoadN(r.exp_avg + i, k), simd::LoadN(r.exp_avg_sq + i, k)};
        UpdateLanes(s, x);
        simd::StoreN(x.weight, r.weight + i, k);
        simd::StoreN(x.exp_avg, r.exp_avg + i, k);
        simd::StoreN(x.exp_avg_sq, r.exp_avg_sq + i, k);
        if (r.compute_weight != nullptr) simd::StoreN(x.weight, r.compute_weight + i, k);
      });
}

}  // namespace cadre::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(SumSquaresF32);
HWY_EXPORT(AdamWUpdateF32);

double SumSquares(const float* values, int64_t n) {
  return HWY_DYNAMIC_DISPATCH(SumSquaresF32)(values, n);
}

double SumSquares(const double* values, int64_t n) {
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += values[i] * values[i];
  return total;
}

void AdamWUpdate(const AdamWRun<float>& run, const AdamWScalars<float>& scalars) {
  HWY_DYNAMIC_DISPATCH(AdamWUpdateF32)(run, scalars);
}

void AdamWUpdate(const AdamWRun<double>& run, const AdamWScalars<double>& s) {
  for (int64_t i = 0; i < run.n; ++i) {
    double g = run.gradient[i] * s.gradient_scale;
    double& m = run.exp_avg[i];
    double& v = run.exp_avg_sq[i];
    m += s.beta1_rest * (g - m);
    v = v * s.beta2 + s.beta2_rest * g * g;
    run.weight[i] =
        run.weight[i] * s.keep - s.step_size * (m / (std::sqrt(v) / s.root_bias2 + s.eps));
  }
}

}  // namespace cadre
#endif
