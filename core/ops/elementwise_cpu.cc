#include "core/ops/elementwise_kernels.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/elementwise_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

constexpr int64_t kGrain = 1 << 15;

// y[i] = f(a[i], b[i]) in T.
template <typename T, typename F>
void Binary(Context& ctx, const T* a, const T* b, T* y, int64_t n, const F& f) {
  ParallelFor(ctx, n, kGrain, [&](int64_t begin, int64_t end) {
    const T *pa = a + begin, *pb = b + begin;
    T* py = y + begin;
    ForLanes(
        static_cast<size_t>(end - begin),
        [&](size_t i) HWY_ATTR { Store(f(Load(pa + i), Load(pb + i)), py + i); },
        [&](size_t i, size_t k)
            HWY_ATTR { StoreN(f(LoadN(pa + i, k), LoadN(pb + i, k)), py + i, k); });
  });
}

template <typename T>
void AddTyped(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  Binary(ctx, a.data<T>(), b.data<T>(), y.data<T>(), a.numel(),
         [](VF u, VF v) HWY_ATTR { return hn::Add(u, v); });
}

template <typename T>
void ScaleTyped(Context& ctx, const Tensor& x, float factor, const Tensor& y) {
  Binary(ctx, x.data<T>(), x.data<T>(), y.data<T>(), x.numel(),
         [factor](VF u, VF) HWY_ATTR { return hn::Mul(u, hn::Set(DF(), factor)); });
}

template <typename From, typename To>
void ConvertTyped(Context& ctx, const Tensor& from, const Tensor& to) {
  const From* source = from.data<From>();
  To* target = to.data<To>();
  ParallelFor(ctx, from.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const From* ps = source + begin;
    To* pt = target + begin;
    ForLanes(
        static_cast<size_t>(end - begin), [&](size_t i) HWY_ATTR { Store(Load(ps + i), pt + i); },
        [&](size_t i, size_t k) HWY_ATTR { StoreN(LoadN(ps + i, k), pt + i, k); });
  });
}

template <typename From>
void ConvertFrom(Context& ctx, const Tensor& from, const Tensor& to) {
  switch (to.dtype()) {
    case DType::kF32:
      return ConvertTyped<From, float>(ctx, from, to);
    case DType::kBF16:
      return ConvertTyped<From, BF16>(ctx, from, to);
    case DType::kF16:
      return ConvertTyped<From, F16>(ctx, from, to);
    default:
      CADRE_CHECK(false, "cast to dtype {}", static_cast<int>(to.dtype()));
  }
}

void AddAny(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  switch (a.dtype()) {
    case DType::kF32:
      return AddTyped<float>(ctx, a, b, y);
    case DType::kBF16:
      return AddTyped<BF16>(ctx, a, b, y);
    case DType::kF16:
      return AddTyped<F16>(ctx, a, b, y);
    default:
      CADRE_CHECK(false, "add of dtype {}", static_cast<int>(a.dtype()));
  }
}

void ScaleAny(Context& ctx, const Tensor& x, float factor, const Tensor& y) {
  switch (x.dtype()) {
    case DType::kF32:
      return ScaleTyped<float>(ctx, x, factor, y);
    case DType::kBF16:
      return ScaleTyped<BF16>(ctx, x, factor, y);
    case DType::kF16:
      return ScaleTyped<F16>(ctx, x, factor, y);
    default:
      CADRE_CHECK(false, "scale of dtype {}", static_cast<int>(x.dtype()));
  }
}

void ConvertAny(Context& ctx, const Tensor& from, const Tensor& to) {
  switch (from.dtype()) {
    case DType::kF32:
      return ConvertFrom<float>(ctx, from, to);
    case DType::kBF16:
      return ConvertFrom<BF16>(ctx, from, to);
    case DType::kF16:
      return ConvertFrom<F16>(ctx, from, to);
    default:
      CADRE_CHECK(false, "cast from dtype {}", static_cast<int>(from.dtype()));
  }
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(AddAny);
HWY_EXPORT(ScaleAny);
HWY_EXPORT(ConvertAny);

void AddCpu(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  HWY_DYNAMIC_DISPATCH(AddAny)(ctx, a, b, y);
}
void ScaleCpu(Context& ctx, const Tensor& x, float factor, const Tensor& y) {
  HWY_DYNAMIC_DISPATCH(ScaleAny)(ctx, x, factor, y);
}
void ConvertCpu(Context& ctx, const Tensor& from, const Tensor& to) {
  HWY_DYNAMIC_DISPATCH(ConvertAny)(ctx, from, to);
}

}  // namespace cadre::ops
#endif
