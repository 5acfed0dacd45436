#include "core/ops/activation_kernels.h"
#include "core/ops/compute_types.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/activation_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/math-inl.h"
#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace {

constexpr int64_t kElementsPerThread = 1 << 13;

HWY_INLINE VF One() { return hn::Set(DF(), 1.0f); }
HWY_INLINE VF InLimit(VF x, VF limit) { return hn::Max(hn::Min(x, limit), hn::Neg(limit)); }

// The clamps of one SwiGLU; without a limit they are the identity.
struct Gate {
  VF alpha, limit, offset;

  HWY_INLINE explicit Gate(const SwiGluArgs& args)
      : alpha(hn::Set(DF(), args.alpha)),
        limit(hn::Set(DF(), args.limit > 0 ? args.limit : hwy::HighestValue<float>())),
        offset(hn::Set(DF(), args.up_offset)) {}

  HWY_INLINE VF Forward(VF gate, VF up) const {
    const VF g = hn::Min(gate, limit);
    const VF u = hn::Add(InLimit(up, limit), offset);
    return hn::Mul(u, hn::Mul(g, Sigmoid(hn::Mul(alpha, g))));
  }
  HWY_INLINE void Backward(VF gate, VF up, VF dy, VF& dgate, VF& dup) const {
    const VF g = hn::Min(gate, limit);
    const VF u = hn::Add(InLimit(up, limit), offset);
    const VF s = Sigmoid(hn::Mul(alpha, g));
    const VF slope = hn::Mul(s, hn::MulAdd(hn::Mul(alpha, g), hn::Sub(One(), s), One()));
    dgate = hn::IfThenElseZero(hn::Le(gate, limit), hn::Mul(hn::Mul(dy, u), slope));
    dup = hn::IfThenElseZero(hn::Le(hn::Abs(up), limit), hn::Mul(dy, hn::Mul(g, s)));
  }
};

template <typename T>
void SwiGluRow(const T* gate, const T* up, const SwiGluArgs& args, T* y, size_t width) {
  const Gate f(args);
  ForLanes(
      width, [&](size_t i) HWY_ATTR { Store(f.Forward(Load(gate + i), Load(up + i)), y + i); },
      [&](size_t i, size_t n)
          HWY_ATTR { StoreN(f.Forward(LoadN(gate + i, n), LoadN(up + i, n)), y + i, n); });
}

template <typename T>
void SwiGluGradRow(const T* x, const T* dy, const SwiGluArgs& args, T* dx, size_t width) {
  const Gate f(args);
  ForLanes(
      width,
      [&](size_t i) HWY_ATTR {
        VF dgate, dup;
        f.Backward(Load(x + i), Load(x + width + i), Load(dy + i), dgate, dup);
        Store(dgate, dx + i);
        Store(dup, dx + width + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        VF dgate, dup;
        f.Backward(LoadN(x + i, n), LoadN(x + width + i, n), LoadN(dy + i, n), dgate, dup);
        StoreN(dgate, dx + i, n);
        StoreN(dup, dx + width + i, n);
      });
}

// sqrt(2 / pi) * (x + 0.044715 x^3), doubled: (1 + tanh(u)) / 2 = sigmoid(2 u).
constexpr float kTwoRootTwoOverPi = 1.5957691216f;
constexpr float kCubic = 0.044715f;

template <Unary kKind>
HWY_INLINE VF UnaryValue(VF x, VF limit) {
  const DF df;
  if constexpr (kKind == Unary::kClamp) {
    return InLimit(x, limit);
  } else if constexpr (kKind == Unary::kGeluErf) {
    const VF half = hn::Mul(x, hn::Set(df, 0.5f));
    return hn::Mul(half, hn::Add(One(), Erf(hn::Mul(x, hn::Set(df, 0.70710678f)))));
  } else {
    const VF cubic = hn::MulAdd(hn::Mul(x, x), hn::Set(df, kCubic), One());
    return hn::Mul(x, Sigmoid(hn::Mul(hn::Mul(x, cubic), hn::Set(df, kTwoRootTwoOverPi))));
  }
}

template <Unary kKind>
HWY_INLINE VF UnarySlope(VF x, VF limit) {
  const DF df;
  const VF square = hn::Mul(x, x);
  if constexpr (kKind == Unary::kClamp) {
    return hn::IfThenElseZero(hn::Le(hn::Abs(x), limit), One());
  } else if constexpr (kKind == Unary::kGeluErf) {
    const VF half = hn::Set(df, 0.5f);
    const VF cdf = hn::Mul(half, hn::Add(One(), Erf(hn::Mul(x, hn::Set(df, 0.70710678f)))));
    const VF density = hn::Mul(ExpOf(hn::Neg(hn::Mul(half, square))), hn::Set(df, 0.39894228f));
    return hn::MulAdd(x, density, cdf);
  } else {
    const VF scale = hn::Set(df, kTwoRootTwoOverPi);
    const VF cubic = hn::MulAdd(square, hn::Set(df, kCubic), One());
    const VF s = Sigmoid(hn::Mul(hn::Mul(x, cubic), scale));
    const VF inner = hn::Mul(scale, hn::MulAdd(square, hn::Set(df, 3 * kCubic), One()));
    return hn::MulAdd(hn::Mul(hn::Mul(x, s), hn::Sub(One(), s)), inner, s);
  }
}

template <Unary kKind, typename T>
void UnaryRange(const T* x, float limit, T* y, size_t count) {
  const VF bound = hn::Set(DF(), limit);
  ForLanes(
      count, [&](size_t i) HWY_ATTR { Store(UnaryValue<kKind>(Load(x + i), bound), y + i); },
      [&](size_t i, size_t n)
          HWY_ATTR { StoreN(UnaryValue<kKind>(LoadN(x + i, n), bound), y + i, n); });
}

template <Unary kKind, typename T>
void UnaryGradRange(const T* x, const T* dy, float limit, T* dx, size_t count) {
  const VF bound = hn::Set(DF(), limit);
  ForLanes(
      count,
      [&](size_t i)
          HWY_ATTR { Store(hn::Mul(Load(dy + i), UnarySlope<kKind>(Load(x + i), bound)), dx + i); },
      [&](size_t i, size_t n) HWY_ATTR {
        StoreN(hn::Mul(LoadN(dy + i, n), UnarySlope<kKind>(LoadN(x + i, n), bound)), dx + i, n);
      });
}

template <Unary kKind, typename T>
void UnaryTyped(Context& ctx, float limit, const Tensor& x, const Tensor& y) {
  ParallelFor(ctx, x.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    UnaryRange<kKind>(x.data<T>() + begin, limit, y.data<T>() + begin, end - begin);
  });
}

template <Unary kKind, typename T>
void UnaryGradTyped(Context& ctx, const UnaryGradArgs& args) {
  ParallelFor(ctx, args.x.numel(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    UnaryGradRange<kKind>(args.x.data<T>() + begin, args.dy.data<T>() + begin, args.unary.limit,
                          args.dx.data<T>() + begin, end - begin);
  });
}

template <typename T>
void SigmoidGateRow(const T* x, const T* gate, T* y, size_t d) {
  const VF s = Sigmoid(hn::Set(DF(), static_cast<float>(*gate)));
  ForLanes(
      d, [&](size_t i) HWY_ATTR { Store(hn::Mul(Load(x + i), s), y + i); },
      [&](size_t i, size_t n) HWY_ATTR { StoreN(hn::Mul(LoadN(x + i, n), s), y + i, n); });
}

template <typename T>
void SigmoidGateGradRow(const SigmoidGateGradArgs& args, int64_t r) {
  const DF df;
  const size_t d = static_cast<size_t>(args.x.dim(1));
  const T *x = args.x.data<T>() + r * d, *dy = args.dy.data<T>() + r * d;
  T* dx = args.dx.data<T>() + r * d;
  const VF s = Sigmoid(hn::Set(df, static_cast<float>(args.gate.data<T>()[r])));
  VF dot = hn::Zero(df);
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF g = Load(dy + i);
        dot = hn::MulAdd(g, Load(x + i), dot);
        Store(hn::Mul(g, s), dx + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF g = LoadN(dy + i, n);
        dot = hn::MulAdd(g, LoadN(x + i, n), dot);
        StoreN(hn::Mul(g, s), dx + i, n);
      });
  const float value = hn::GetLane(s);
  args.dgate.data<T>()[r] =
      static_cast<T>(hn::GetLane(hn::SumOfLanes(df, dot)) * value * (1.0f - value));
}

void SwiGluAny(Context& ctx, const Tensor& x, const SwiGluArgs& args, const Tensor& y) {
  VisitComputeType("swiglu", x.dtype(), [&](auto t) {
    using T = decltype(t);
    const int64_t width = x.dim(1) / 2;
    ParallelFor(ctx, x.dim(0), kElementsPerThread / width, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = x.data<T>() + r * 2 * width;
        SwiGluRow<T>(row, row + width, args, y.data<T>() + r * width, width);
      }
    });
  });
}

void SwiGluGradAny(Context& ctx, const SwiGluGradArgs& args) {
  VisitComputeType("swiglu", args.x.dtype(), [&](auto t) {
    using T = decltype(t);
    const int64_t width = args.x.dim(1) / 2;
    ParallelFor(ctx, args.x.dim(0), kElementsPerThread / width, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        SwiGluGradRow<T>(args.x.data<T>() + r * 2 * width, args.dy.data<T>() + r * width, args.form,
                         args.dx.data<T>() + r * 2 * width, width);
      }
    });
  });
}

void UnaryAny(Context& ctx, const UnaryArgs& args, const Tensor& x, const Tensor& y) {
  VisitComputeType("unary", x.dtype(), [&](auto t) {
    using T = decltype(t);
    switch (args.kind) {
      case Unary::kGeluErf:
        return UnaryTyped<Unary::kGeluErf, T>(ctx, args.limit, x, y);
      case Unary::kGeluTanh:
        return UnaryTyped<Unary::kGeluTanh, T>(ctx, args.limit, x, y);
      case Unary::kClamp:
        return UnaryTyped<Unary::kClamp, T>(ctx, args.limit, x, y);
    }
  });
}

void UnaryGradAny(Context& ctx, const UnaryGradArgs& args) {
  VisitComputeType("unary", args.x.dtype(), [&](auto t) {
    using T = decltype(t);
    switch (args.unary.kind) {
      case Unary::kGeluErf:
        return UnaryGradTyped<Unary::kGeluErf, T>(ctx, args);
      case Unary::kGeluTanh:
        return UnaryGradTyped<Unary::kGeluTanh, T>(ctx, args);
      case Unary::kClamp:
        return UnaryGradTyped<Unary::kClamp, T>(ctx, args);
    }
  });
}

void SigmoidGateAny(Context& ctx, const SigmoidGateArgs& args) {
  VisitComputeType("sigmoid_gate", args.x.dtype(), [&](auto t) {
    using T = decltype(t);
    const int64_t d = args.x.dim(1);
    ParallelFor(ctx, args.x.dim(0), kElementsPerThread / d, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        SigmoidGateRow<T>(args.x.data<T>() + r * d, args.gate.data<T>() + r,
                          args.y.data<T>() + r * d, d);
      }
    });
  });
}

void SigmoidGateGradAny(Context& ctx, const SigmoidGateGradArgs& args) {
  VisitComputeType("sigmoid_gate", args.x.dtype(), [&](auto t) {
    using T = decltype(t);
    ParallelFor(ctx, args.x.dim(0), kElementsPerThread / args.x.dim(1),
                [&](int64_t begin, int64_t end) {
                  for (int64_t r = begin; r < end; ++r) SigmoidGateGradRow<T>(args, r);
                });
  });
}

}  // namespace
}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(SwiGluAny);
HWY_EXPORT(SwiGluGradAny);
HWY_EXPORT(UnaryAny);
HWY_EXPORT(UnaryGradAny);
HWY_EXPORT(SigmoidGateAny);
HWY_EXPORT(SigmoidGateGradAny);

void SwiGluCpu(Context& ctx, const Tensor& x, const SwiGluArgs& args, const Tensor& y) {
  HWY_DYNAMIC_DISPATCH(SwiGluAny)(ctx, x, args, y);
}
void SwiGluGradCpu(Context& ctx, const SwiGluGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(SwiGluGradAny)(ctx, args);
}
void UnaryCpu(Context& ctx, const UnaryArgs& args, const Tensor& x, const Tensor& y) {
  HWY_DYNAMIC_DISPATCH(UnaryAny)(ctx, args, x, y);
}
void UnaryGradCpu(Context& ctx, const UnaryGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(UnaryGradAny)(ctx, args);
}
void SigmoidGateCpu(Context& ctx, const SigmoidGateArgs& args) {
  HWY_DYNAMIC_DISPATCH(SigmoidGateAny)(ctx, args);
}
void SigmoidGateGradCpu(Context& ctx, const SigmoidGateGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(SigmoidGateGradAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
