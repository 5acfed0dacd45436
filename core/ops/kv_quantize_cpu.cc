#include <limits>

#include "core/ops/kv_quantize.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/kv_quantize_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

using D16f = hn::CappedTag<float, 16>;
using D16i = hn::RebindToSigned<D16f>;

// The bf16 next to x away from zero, as a float; x is finite.
inline float RoundAway(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0xffffu) != 0) bits = (bits & 0xffff0000u) + 0x10000u;
  return std::bit_cast<float>(bits);
}

struct Range {
  float least, most;
  bool finite;
};

HWY_INLINE Range RangeOf(const float* x, int64_t n) {
  const D16f d;
  const auto largest = hn::Set(d, std::numeric_limits<float>::max());
  auto least = hn::LoadU(d, x), most = least;
  bool finite = true;
  for (int64_t i = 0; i < n; i += hn::Lanes(d)) {
    const auto value = hn::LoadU(d, x + i);
    finite &= hn::AllTrue(d, hn::Le(hn::Abs(value), largest));
    least = hn::Min(least, value);
    most = hn::Max(most, value);
  }
  return {hn::GetLane(hn::MinOfLanes(d, least)), hn::GetLane(hn::MaxOfLanes(d, most)), finite};
}

// Zero for zeros, NaN where something is not finite.
HWY_INLINE float ScaleOf(KvQuantization quantization, const float* x, int64_t n) {
  const Range range = RangeOf(x, n);
  if (!range.finite) return std::numeric_limits<float>::quiet_NaN();
  const float widest = range.most > -range.least ? range.most : range.least;
  if (quantization == KvQuantization::kInt8) {
    return RoundAway((widest < 0 ? -widest : widest) / 127.0f);
  }
  return RoundAway(widest / -8.0f);
}

void Quantize(const KvQuantizeArgs& args) {
  const D16f d;
  const D16i di;
  const hn::Rebind<int8_t, D16f> d8;
  const bool wide = args.quantization == KvQuantization::kInt8;
  const auto low = hn::Set(di, wide ? -127 : -8), high = hn::Set(di, wide ? 127 : 7);
  for (int64_t g = 0; g < args.groups; ++g) {
    const float* x = args.x + g * args.group;
    const float scale = ScaleOf(args.quantization, x, args.group);
    args.scales[g] = BF16(scale);
    const bool codes = scale < 0 || scale > 0;
    for (int64_t i = 0; i < args.group; i += hn::Lanes(d)) {
      auto code = hn::Zero(di);
      if (codes) {
        code = hn::NearestInt(hn::Div(hn::LoadU(d, x + i), hn::Set(d, scale)));
        code = hn::Min(hn::Max(code, low), high);
      }
      hn::StoreU(hn::DemoteTo(d8, code), d8, args.codes + g * args.group + i);
    }
  }
}

void Unpack8(const std::byte* codes, int64_t n, BF16* to) {
  const DF df;
  const hn::Rebind<int8_t, DF> d8;
  const hn::RebindToSigned<DF> di;
  const auto* from = reinterpret_cast<const int8_t*>(codes);
  for (int64_t i = 0; i < n; i += hn::Lanes(df)) {
    Store(hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, from + i))), to + i);
  }
}

void Unpack4(const std::byte* codes, int64_t n, BF16* to) {
  const DF df;
  const D16 d16;
  const hn::RebindToSigned<DF> di;
  const auto* from = reinterpret_cast<const uint16_t*>(codes);
  const auto low = hn::Set(di, 15), middle = hn::Set(di, 8);
  for (int64_t i = 0; i < n; i += 128, from += 32) {
    for (int64_t lane = 0; lane < 32; lane += hn::Lanes(df)) {
      auto words = hn::PromoteTo(di, hn::LoadU(d16, from + lane));
      for (int64_t r = 0; r < 4; ++r, words = hn::ShiftRight<4>(words)) {
        const auto code = hn::Sub(hn::And(words, low), middle);
        Store(hn::ConvertTo(df, code), to + i + r * 32 + lane);
      }
    }
  }
}

void Unpack(KvQuantization quantization, const std::byte* codes, int64_t n, BF16* to) {
  if (quantization == KvQuantization::kInt8) {
    Unpack8(codes, n, to);
  } else {
    Unpack4(codes, n, to);
  }
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(Quantize);
HWY_EXPORT(Unpack);

void QuantizeKv(const KvQuantizeArgs& args) { HWY_DYNAMIC_DISPATCH(Quantize)(args); }

void UnpackKv(KvQuantization quantization, const std::byte* codes, int64_t n, BF16* to) {
  HWY_DYNAMIC_DISPATCH(Unpack)(quantization, codes, n, to);
}

}  // namespace cadre::ops
#endif
