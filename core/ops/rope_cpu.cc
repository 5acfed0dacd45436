#include <cstring>

#include "core/ops/compute_types.h"
#include "core/ops/rope.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/rope_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace {

// Elements i and half + i.
template <typename T>
void RotateHalves(const T* x, const float* cos, const float* sin, float sign, T* y, size_t half) {
  const VF flip = hn::Set(DF(), sign);
  ForLanes(
      half,
      [&](size_t i) HWY_ATTR {
        const VF a = Load(x + i), b = Load(x + half + i);
        const VF c = Load(cos + i), s = hn::Mul(Load(sin + i), flip);
        Store(hn::NegMulAdd(b, s, hn::Mul(a, c)), y + i);
        Store(hn::MulAdd(a, s, hn::Mul(b, c)), y + half + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF a = LoadN(x + i, n), b = LoadN(x + half + i, n);
        const VF c = LoadN(cos + i, n), s = hn::Mul(LoadN(sin + i, n), flip);
        StoreN(hn::NegMulAdd(b, s, hn::Mul(a, c)), y + i, n);
        StoreN(hn::MulAdd(a, s, hn::Mul(b, c)), y + half + i, n);
      });
}

#if HWY_TARGET == HWY_SCALAR
template <typename T>
void RotatePairs(const T* x, const float* cos, const float* sin, float sign, T* y, size_t count) {
  for (size_t i = 0; i < count; i += 2) {
    const float a = static_cast<float>(x[i]), b = static_cast<float>(x[i + 1]);
    y[i] = static_cast<T>(a * cos[i] + b * (sin[i] * sign));
    y[i + 1] = static_cast<T>(b * cos[i + 1] + a * (sin[i + 1] * sign));
  }
}
#else
// Elements 2 i and 2 i + 1: the table holds (c, c) and (-s, s) for each pair.
template <typename T>
void RotatePairs(const T* x, const float* cos, const float* sin, float sign, T* y, size_t count) {
  const VF flip = hn::Set(DF(), sign);
  ForLanes(
      count,
      [&](size_t i) HWY_ATTR {
        const VF v = Load(x + i), s = hn::Mul(Load(sin + i), flip);
        Store(hn::MulAdd(hn::Shuffle2301(v), s, hn::Mul(v, Load(cos + i))), y + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF v = LoadN(x + i, n), s = hn::Mul(LoadN(sin + i, n), flip);
        StoreN(hn::MulAdd(hn::Shuffle2301(v), s, hn::Mul(v, LoadN(cos + i, n))), y + i, n);
      });
}
#endif

template <typename T>
void RotateToken(const RopeKernelArgs& args, int64_t t) {
  const RopeTable& table = *args.table;
  const int64_t heads = args.x.dim(1), dh = args.x.dim(2), rotary = table.rotary_dim();
  const int64_t position = args.positions.data<int32_t>()[t];
  const float *cos = table.cos(position), *sin = table.sin(position);
  const float sign = args.backward ? -1.0f : 1.0f;
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t head = (t * heads + h) * dh;
    const T* x = args.x.data<T>() + head;
    T* y = args.y.data<T>() + head;
    const int64_t end = args.offset + rotary;
    std::memcpy(static_cast<void*>(y), x, static_cast<size_t>(args.offset) * sizeof(T));
    std::memcpy(static_cast<void*>(y + end), x + end, static_cast<size_t>(dh - end) * sizeof(T));
    if (table.pairing() == RopePairing::kInterleaved) {
      RotatePairs(x + args.offset, cos, sin, sign, y + args.offset, rotary);
    } else {
      RotateHalves(x + args.offset, cos, sin, sign, y + args.offset, rotary / 2);
    }
  }
}

void RopeAny(Context& ctx, const RopeKernelArgs& args) {
  VisitComputeType("rope", args.x.dtype(), [&](auto t) {
    using T = decltype(t);
    ParallelFor(ctx, args.x.dim(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) RotateToken<T>(args, token);
    });
  });
}

}  // namespace
}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(RopeAny);

void RopeCpu(Context& ctx, const RopeKernelArgs& args) { HWY_DYNAMIC_DISPATCH(RopeAny)(ctx, args); }

}  // namespace cadre::ops
#endif
