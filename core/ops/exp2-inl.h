// 2^x for fp32 vectors, under Highway's dynamic dispatch; include like simd-inl.h. A function of
// its argument alone: the same bits in every lane and batch. Relative error at most 2e-7 for
// -126 <= x <= 127; 0 below (so minus infinity gives 0), NaN for NaN; 2^0 is exactly 1. The
// polynomial is the fit of 2^f to degree 5 with the least relative error on [-1/2, 1/2].

#if defined(CADRE_CORE_OPS_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CADRE_CORE_OPS_EXP2_INL_H_
#undef CADRE_CORE_OPS_EXP2_INL_H_
#else
#define CADRE_CORE_OPS_EXP2_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

template <class D, class V = hwy::HWY_NAMESPACE::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::RebindToUnsigned<D> du;
  // Adding this leaves x + 127, rounded, in the low bits: the exponent's field of 2^round(x).
  const V magic = hn::Set(d, 12582912.0f + 127.0f);
  const V shifted = hn::Add(x, magic);
  const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted)));
  const V f = hn::Sub(x, hn::Sub(shifted, magic));
  V p = hn::Set(d, 0.00132647261f);
  p = hn::MulAdd(p, f, hn::Set(d, 0.00967151299f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.0555073358f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.240222424f));
  p = hn::MulAdd(p, f, hn::Set(d, 0.693147004f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const V scaled = hn::Mul(p, power);
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), scaled);
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
