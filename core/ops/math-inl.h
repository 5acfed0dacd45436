// Vector functions for kernels under Highway's dynamic dispatch: the logistic function, the error
// function. Each lane is a function of its argument alone. Include after "core/ops/simd-inl.h".

#if defined(CADRE_CORE_OPS_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CADRE_CORE_OPS_MATH_INL_H_
#undef CADRE_CORE_OPS_MATH_INL_H_
#else
#define CADRE_CORE_OPS_MATH_INL_H_
#endif

#include "core/ops/simd-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// e^x for finite x up to 88; smaller than -104 gives 0, -inf too.
HWY_INLINE VF ExpOf(VF x) { return hn::Exp(DF(), hn::Max(x, hn::Set(DF(), -105.0f))); }

// 1 / (1 + e^-x). The clamp keeps e^-x finite; beyond it the result rounds to 0 or 1 anyway.
HWY_INLINE VF Sigmoid(VF x) {
  const DF df;
  const VF clamped = hn::Min(hn::Max(x, hn::Set(df, -87.0f)), hn::Set(df, 87.0f));
  const VF one = hn::Set(df, 1.0f);
  return hn::Div(one, hn::Add(one, hn::Exp(df, hn::Neg(clamped))));
}

// Abramowitz & Stegun 7.1.26, absolute error under 2e-7.
HWY_INLINE VF Erf(VF x) {
  const DF df;
  const VF a = hn::Abs(x), one = hn::Set(df, 1.0f);
  const VF t = hn::Div(one, hn::MulAdd(hn::Set(df, 0.3275911f), a, one));
  VF p = hn::Set(df, 1.061405429f);
  p = hn::MulAdd(p, t, hn::Set(df, -1.453152027f));
  p = hn::MulAdd(p, t, hn::Set(df, 1.421413741f));
  p = hn::MulAdd(p, t, hn::Set(df, -0.284496736f));
  p = hn::MulAdd(p, t, hn::Set(df, 0.254829592f));
  const VF tail = hn::Mul(hn::Mul(p, t), ExpOf(hn::Neg(hn::Mul(a, a))));
  return hn::CopySign(hn::Sub(one, tail), x);
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
