#include <cmath>

#include "core/ops/compute_types.h"
#include "core/ops/layer_norm.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/layer_norm_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace {

template <typename T>
float Mean(const T* x, size_t d) {
  VF sum = hn::Zero(DF());
  ForLanes(
      d, [&](size_t i) HWY_ATTR { sum = hn::Add(sum, Load(x + i)); },
      [&](size_t i, size_t n) HWY_ATTR { sum = hn::Add(sum, LoadN(x + i, n)); });
  return hn::GetLane(hn::SumOfLanes(DF(), sum)) / static_cast<float>(d);
}

template <typename T>
float Variance(const T* x, float mean, size_t d) {
  const VF center = hn::Set(DF(), mean);
  VF sum = hn::Zero(DF());
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF v = hn::Sub(Load(x + i), center);
        sum = hn::MulAdd(v, v, sum);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF v = hn::IfThenElseZero(hn::FirstN(DF(), n), hn::Sub(LoadN(x + i, n), center));
        sum = hn::MulAdd(v, v, sum);
      });
  return hn::GetLane(hn::SumOfLanes(DF(), sum)) / static_cast<float>(d);
}

template <typename T>
void ForwardRow(const LayerNormForwardArgs& args, int64_t r) {
  const size_t d = static_cast<size_t>(args.x.dim(1));
  const T *x = args.x.data<T>() + r * d, *w = args.weight.data<T>();
  const T* b = args.bias.defined() ? args.bias.data<T>() : nullptr;
  T* y = args.y.data<T>() + r * d;
  const float mean = Mean(x, d);
  const float rstd = 1.0f / std::sqrt(Variance(x, mean, d) + static_cast<float>(args.eps));
  args.mean.data<float>()[r] = mean;
  args.rstd.data<float>()[r] = rstd;
  const VF center = hn::Set(DF(), mean), scale = hn::Set(DF(), rstd), zero = hn::Zero(DF());
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF v = hn::Mul(hn::Sub(Load(x + i), center), scale);
        Store(hn::MulAdd(v, Load(w + i), b == nullptr ? zero : Load(b + i)), y + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF v = hn::Mul(hn::Sub(LoadN(x + i, n), center), scale);
        StoreN(hn::MulAdd(v, LoadN(w + i, n), b == nullptr ? zero : LoadN(b + i, n)), y + i, n);
      });
}

template <typename T>
void InputGradRow(const LayerNormGradArgs& args, int64_t r) {
  const size_t d = static_cast<size_t>(args.x.dim(1));
  const T *x = args.x.data<T>() + r * d, *w = args.weight.data<T>();
  const T* dy = args.dy.data<T>() + r * d;
  T* dx = args.dx.data<T>() + r * d;
  const float rstd = args.rstd.data<float>()[r], count = static_cast<float>(d);
  const VF center = hn::Set(DF(), args.mean.data<float>()[r]), scale = hn::Set(DF(), rstd);
  VF sum = hn::Zero(DF()), dot = hn::Zero(DF());
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF g = hn::Mul(Load(dy + i), Load(w + i));
        sum = hn::Add(sum, g);
        dot = hn::MulAdd(g, hn::Mul(hn::Sub(Load(x + i), center), scale), dot);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF g = hn::Mul(LoadN(dy + i, n), LoadN(w + i, n));
        sum = hn::Add(sum, g);
        dot = hn::MulAdd(g, hn::Mul(hn::Sub(LoadN(x + i, n), center), scale), dot);
      });
  const VF mean_g = hn::Set(DF(), hn::GetLane(hn::SumOfLanes(DF(), sum)) / count);
  const VF mean_dot = hn::Set(DF(), hn::GetLane(hn::SumOfLanes(DF(), dot)) / count);
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF v = hn::Mul(hn::Sub(Load(x + i), center), scale);
        const VF g = hn::Sub(hn::Mul(Load(dy + i), Load(w + i)), mean_g);
        Store(hn::Mul(scale, hn::NegMulAdd(v, mean_dot, g)), dx + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF v = hn::Mul(hn::Sub(LoadN(x + i, n), center), scale);
        const VF g = hn::Sub(hn::Mul(LoadN(dy + i, n), LoadN(w + i, n)), mean_g);
        StoreN(hn::Mul(scale, hn::NegMulAdd(v, mean_dot, g)), dx + i, n);
      });
}

// Adds row r, columns [begin, end), to dw and db.
template <typename T>
void WeightGradRow(const LayerNormGradArgs& args, int64_t r, int64_t begin, int64_t end) {
  const int64_t d = args.x.dim(1);
  const T *x = args.x.data<T>() + r * d + begin, *dy = args.dy.data<T>() + r * d + begin;
  const VF center = hn::Set(DF(), args.mean.data<float>()[r]);
  const VF scale = hn::Set(DF(), args.rstd.data<float>()[r]);
  float* dw = args.dw.defined() ? args.dw.data<float>() + begin : nullptr;
  float* db = args.db.defined() ? args.db.data<float>() + begin : nullptr;
  ForLanes(
      static_cast<size_t>(end - begin),
      [&](size_t i) HWY_ATTR {
        const VF g = Load(dy + i), v = hn::Mul(hn::Sub(Load(x + i), center), scale);
        if (dw != nullptr) Store(hn::MulAdd(g, v, Load(dw + i)), dw + i);
        if (db != nullptr) Store(hn::Add(g, Load(db + i)), db + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF g = LoadN(dy + i, n), v = hn::Mul(hn::Sub(LoadN(x + i, n), center), scale);
        if (dw != nullptr) StoreN(hn::MulAdd(g, v, LoadN(dw + i, n)), dw + i, n);
        if (db != nullptr) StoreN(hn::Add(g, LoadN(db + i, n)), db + i, n);
      });
}

void ForwardAny(Context& ctx, const LayerNormForwardArgs& args) {
  VisitComputeType("layer_norm", args.x.dtype(), [&](auto t) {
    ParallelFor(ctx, args.x.dim(0), 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) ForwardRow<decltype(t)>(args, r);
    });
  });
}

void GradAny(Context& ctx, const LayerNormGradArgs& args) {
  const int64_t rows = args.x.dim(0), d = args.x.dim(1);
  VisitComputeType("layer_norm", args.x.dtype(), [&](auto t) {
    using T = decltype(t);
    if (args.dx.defined()) {
      ParallelFor(ctx, rows, 16, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) InputGradRow<T>(args, r);
      });
    }
    if (!args.dw.defined() && !args.db.defined()) return;
    // Threads split columns, so every element is summed over all rows in one order.
    ParallelFor(ctx, (d + 63) / 64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < rows; ++r) {
        WeightGradRow<T>(args, r, begin * 64, std::min(end * 64, d));
      }
    });
  });
}

}  // namespace
}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(ForwardAny);
HWY_EXPORT(GradAny);

void LayerNormForwardCpu(Context& ctx, const LayerNormForwardArgs& args) {
  HWY_DYNAMIC_DISPATCH(ForwardAny)(ctx, args);
}
void LayerNormGradCpu(Context& ctx, const LayerNormGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(GradAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
