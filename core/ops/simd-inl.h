// Loads and stores of f32, bf16 and f16 rows as f32 vectors, for kernels under Highway's dynamic
// dispatch. Include after "hwy/highway.h" inside the file that foreach_target.h repeats; everything
// here is compiled once per target.
//
// A row's arithmetic depends on its length alone: whole vectors first, then one partial vector of
// the same operations, so a row gives the same bits in any batch.

#if defined(CADRE_CORE_OPS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CADRE_CORE_OPS_SIMD_INL_H_
#undef CADRE_CORE_OPS_SIMD_INL_H_
#else
#define CADRE_CORE_OPS_SIMD_INL_H_
#endif

#include "core/dtype.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;
using D16 = hn::Rebind<uint16_t, DF>;
using D32 = hn::RebindToUnsigned<DF>;

HWY_INLINE VF ToF32(hn::Vec<D16> bits, BF16) {
  const DF df;
  const D32 du;
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

HWY_INLINE VF ToF32(hn::Vec<D16> bits, F16) {
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::PromoteTo(df, hn::BitCast(dh, bits));
}

// Round to nearest even; NaN stays NaN.
HWY_INLINE hn::Vec<D16> FromF32(VF value, BF16) {
  const D32 du;
  const D16 d16;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40));
  const auto is_nan = hn::RebindMask(du, hn::IsNaN(value));
  return hn::DemoteTo(
      d16, hn::BitCast(hn::RebindToSigned<D32>(), hn::IfThenElse(is_nan, quiet, rounded)));
}

HWY_INLINE hn::Vec<D16> FromF32(VF value, F16) {
  const D16 d16;
  const hn::Rebind<hwy::float16_t, DF> dh;
  return hn::BitCast(d16, hn::DemoteTo(dh, value));
}

HWY_INLINE VF Load(const float* p) { return hn::LoadU(DF(), p); }
template <typename T>
HWY_INLINE VF Load(const T* p) {
  return ToF32(hn::LoadU(D16(), reinterpret_cast<const uint16_t*>(p)), T());
}
HWY_INLINE void Store(VF value, float* p) { hn::StoreU(value, DF(), p); }
template <typename T>
HWY_INLINE void Store(VF value, T* p) {
  hn::StoreU(FromF32(value, T()), D16(), reinterpret_cast<uint16_t*>(p));
}

// The first n lanes; the rest are zero.
template <typename T>
HWY_INLINE VF LoadN(const T* p, size_t n) {
  HWY_ALIGN T buffer[hn::MaxLanes(DF())] = {};
  for (size_t i = 0; i < n; ++i) buffer[i] = p[i];
  return Load(buffer);
}
template <typename T>
HWY_INLINE void StoreN(VF value, T* p, size_t n) {
  HWY_ALIGN T buffer[hn::MaxLanes(DF())];
  Store(value, buffer);
  for (size_t i = 0; i < n; ++i) p[i] = buffer[i];
}

// Calls step(i, lanes) over [0, n): whole vectors, then one partial one.
template <typename Whole, typename Partial>
HWY_INLINE void ForLanes(size_t n, const Whole& whole, const Partial& partial) {
  const size_t lanes = hn::Lanes(DF());
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) whole(i);
  if (i < n) partial(i, n - i);
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
