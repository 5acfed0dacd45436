#include <cmath>
#include <vector>

#include "core/ops/rms_norm.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/rms_norm_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

template <typename T>
float SumOfSquares(const T* x, size_t d) {
  VF sum = hn::Zero(DF());
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF v = Load(x + i);
        sum = hn::MulAdd(v, v, sum);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF v = LoadN(x + i, n);
        sum = hn::MulAdd(v, v, sum);
      });
  return hn::GetLane(hn::SumOfLanes(DF(), sum));
}

// The value that multiplies w: rounded to T as the published models do.
template <typename T>
HWY_INLINE VF Normalized(VF x, VF rstd) {
  const VF scaled = hn::Mul(x, rstd);
  if constexpr (std::is_same_v<T, float>)
    return scaled;
  else
    return ToF32(FromF32(scaled, T()), T());
}

template <typename T>
void ForwardRow(const T* x, const T* w, float rstd, T* y, size_t d) {
  const VF scale = hn::Set(DF(), rstd);
  ForLanes(
      d,
      [&](size_t i)
          HWY_ATTR { Store(hn::Mul(Normalized<T>(Load(x + i), scale), Load(w + i)), y + i); },
      [&](size_t i, size_t n) HWY_ATTR {
        StoreN(hn::Mul(Normalized<T>(LoadN(x + i, n), scale), LoadN(w + i, n)), y + i, n);
      });
}

template <typename T>
float GradDot(const T* x, const T* w, const T* dy, size_t d) {
  VF dot = hn::Zero(DF());
  ForLanes(
      d,
      [&](size_t i)
          HWY_ATTR { dot = hn::MulAdd(hn::Mul(Load(dy + i), Load(w + i)), Load(x + i), dot); },
      [&](size_t i, size_t n) HWY_ATTR {
        dot = hn::MulAdd(hn::Mul(LoadN(dy + i, n), LoadN(w + i, n)), LoadN(x + i, n), dot);
      });
  return hn::GetLane(hn::SumOfLanes(DF(), dot));
}

// `back` multiplies x.
struct InputGradScales {
  float rstd, back;
};

template <typename T>
void InputGradRow(const T* x, const T* w, const T* dy, InputGradScales scales, T* dx, size_t d) {
  const VF back = hn::Set(DF(), scales.back);
  const VF scale = hn::Set(DF(), scales.rstd);
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF direct = hn::Mul(hn::Mul(Load(dy + i), Load(w + i)), scale);
        Store(hn::MulAdd(Load(x + i), back, direct), dx + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF direct = hn::Mul(hn::Mul(LoadN(dy + i, n), LoadN(w + i, n)), scale);
        StoreN(hn::MulAdd(LoadN(x + i, n), back, direct), dx + i, n);
      });
}

// Adds rows [0, rows) of dy * x * rstd to dw, columns [begin, end), row after row.
template <typename T>
void WeightGradColumns(const RmsNormGradArgs& args, int64_t begin, int64_t end) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  const T *x = args.x.data<T>(), *dy = args.dy.data<T>();
  const float* rstd = args.rstd.data<float>();
  float* dw = args.dw.data<float>();
  const size_t n_columns = static_cast<size_t>(end - begin);
  for (int64_t r = 0; r < rows; ++r) {
    const T *xr = x + r * d + begin, *dyr = dy + r * d + begin;
    float* out = dw + begin;
    const VF scale = hn::Set(DF(), rstd[r]);
    ForLanes(
        n_columns,
        [&](size_t i) HWY_ATTR {
          const VF normalized = Normalized<T>(Load(xr + i), scale);
          Store(hn::MulAdd(Load(dyr + i), normalized, Load(out + i)), out + i);
        },
        [&](size_t i, size_t n) HWY_ATTR {
          const VF normalized = Normalized<T>(LoadN(xr + i, n), scale);
          StoreN(hn::MulAdd(LoadN(dyr + i, n), normalized, LoadN(out + i, n)), out + i, n);
        });
  }
}

// finish(r, sum(r)) for every row, with the sums, [R] fp32, completed in between where rows are
// cut.
template <typename Sum, typename Finish>
void InTwoPasses(Context& ctx, const CombineRanks& combine, const Tensor& sums, const Sum& sum,
                 const Finish& finish) {
  const auto rows = [&](const auto& body) {
    ParallelFor(ctx, sums.numel(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) body(r);
    });
  };
  if (!combine) return rows([&](int64_t r) { finish(r, sum(r)); });
  float* partial = sums.data<float>();
  rows([&](int64_t r) { partial[r] = sum(r); });
  combine(ctx, sums);
  rows([&](int64_t r) { finish(r, partial[r]); });
}

template <typename T>
void ForwardRows(Context& ctx, const RmsNormForwardArgs& args) {
  const int64_t d = args.x.dim(1);
  const T *x = args.x.data<T>(), *w = args.weight.data<T>();
  T* y = args.y.data<T>();
  float* rstd = args.rstd.data<float>();
  const float width = static_cast<float>(args.width);
  InTwoPasses(
      ctx, args.combine, args.rstd, [&](int64_t r) { return SumOfSquares(x + r * d, d); },
      [&](int64_t r, float sum) {
        rstd[r] = 1.0f / std::sqrt(sum / width + static_cast<float>(args.eps));
        ForwardRow(x + r * d, w, rstd[r], y + r * d, d);
      });
}

template <typename T>
void GradRows(Context& ctx, const RmsNormGradArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  if (args.dx.defined()) {
    const T *x = args.x.data<T>(), *w = args.weight.data<T>(), *dy = args.dy.data<T>();
    const float* rstd = args.rstd.data<float>();
    T* dx = args.dx.data<T>();
    const float width = static_cast<float>(args.width);
    InTwoPasses(
        ctx, args.combine, ctx.Empty({rows}, DType::kF32),
        [&](int64_t r) { return GradDot(x + r * d, w, dy + r * d, d); },
        [&](int64_t r, float dot) {
          const float back = -dot * rstd[r] * rstd[r] * rstd[r] / width;
          InputGradRow(x + r * d, w, dy + r * d, {rstd[r], back}, dx + r * d, d);
        });
  }
  // Threads split columns, so every element of dw is summed over all rows in one order.
  if (args.dw.defined()) {
    ParallelFor(ctx, (d + 63) / 64, 1, [&](int64_t begin, int64_t end) {
      WeightGradColumns<T>(args, begin * 64, std::min(end * 64, d));
    });
  }
}

void ForwardAny(Context& ctx, const RmsNormForwardArgs& args) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return ForwardRows<float>(ctx, args);
    case DType::kBF16:
      return ForwardRows<BF16>(ctx, args);
    case DType::kF16:
      return ForwardRows<F16>(ctx, args);
    default:
      CADRE_CHECK(false, "rms_norm of dtype {}", static_cast<int>(args.x.dtype()));
  }
}

void GradAny(Context& ctx, const RmsNormGradArgs& args) {
  switch (args.x.dtype()) {
    case DType::kF32:
      return GradRows<float>(ctx, args);
    case DType::kBF16:
      return GradRows<BF16>(ctx, args);
    case DType::kF16:
      return GradRows<F16>(ctx, args);
    default:
      CADRE_CHECK(false, "rms_norm of dtype {}", static_cast<int>(args.x.dtype()));
  }
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(ForwardAny);
HWY_EXPORT(GradAny);

void RmsNormForwardCpu(Context& ctx, const RmsNormForwardArgs& args) {
  HWY_DYNAMIC_DISPATCH(ForwardAny)(ctx, args);
}

void RmsNormGradCpu(Context& ctx, const RmsNormGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(GradAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
