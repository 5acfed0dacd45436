#include <algorithm>
#include <cstring>
#include <vector>

#include "core/ops/compute_types.h"
#include "core/ops/permute.h"
#include "core/parallel_for.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/permute_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {
namespace {

// The k rows of one token.
template <typename T>
struct TokenRows {
  const T* rows;
  const int32_t* row_of;  // [k]
  const float* weights;   // [k]; null: all one
  int64_t k, d;

  const T* row(int64_t j) const { return rows + row_of[j] * d; }
  HWY_INLINE VF weight(int64_t j) const {
    return hn::Set(DF(), weights == nullptr ? 1.0f : weights[j]);
  }
};

template <typename T>
void CombineToken(const TokenRows<T>& token, T* y) {
  ForLanes(
      static_cast<size_t>(token.d),
      [&](size_t i) HWY_ATTR {
        VF sum = hn::Mul(token.weight(0), Load(token.row(0) + i));
        for (int64_t j = 1; j < token.k; ++j) {
          sum = hn::MulAdd(token.weight(j), Load(token.row(j) + i), sum);
        }
        Store(sum, y + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        VF sum = hn::Mul(token.weight(0), LoadN(token.row(0) + i, n));
        for (int64_t j = 1; j < token.k; ++j) {
          sum = hn::MulAdd(token.weight(j), LoadN(token.row(j) + i, n), sum);
        }
        StoreN(sum, y + i, n);
      });
}

// A token's rows without the dropped ones; most tokens have none of those.
class KeptRows {
 public:
  template <typename T>
  TokenRows<T> Of(TokenRows<T> token) {
    if (std::find(token.row_of, token.row_of + token.k, kDropped) == token.row_of + token.k) {
      return token;
    }
    rows_.clear();
    weights_.clear();
    for (int64_t j = 0; j < token.k; ++j) {
      if (token.row_of[j] == kDropped) continue;
      rows_.push_back(token.row_of[j]);
      weights_.push_back(token.weights == nullptr ? 1.0f : token.weights[j]);
    }
    return {token.rows, rows_.data(), weights_.data(), static_cast<int64_t>(rows_.size()), token.d};
  }

 private:
  std::vector<int32_t> rows_;
  std::vector<float> weights_;
};

// drow = weight * dy; returns dy . row.
template <typename T>
float GradRow(const T* row, const T* dy, float weight, T* drow, size_t d) {
  const DF df;
  const VF scale = hn::Set(df, weight);
  VF dot = hn::Zero(df);
  ForLanes(
      d,
      [&](size_t i) HWY_ATTR {
        const VF g = Load(dy + i);
        dot = hn::MulAdd(g, Load(row + i), dot);
        Store(hn::Mul(scale, g), drow + i);
      },
      [&](size_t i, size_t n) HWY_ATTR {
        const VF g = LoadN(dy + i, n);
        dot = hn::MulAdd(g, LoadN(row + i, n), dot);
        StoreN(hn::Mul(scale, g), drow + i, n);
      });
  return hn::GetLane(hn::SumOfLanes(df, dot));
}

void CombineAny(Context& ctx, const CombineArgs& args) {
  const int64_t k = args.row_of.dim(1), d = args.rows.dim(1);
  const float* weights = args.weights.defined() ? args.weights.data<float>() : nullptr;
  VisitComputeType("unpermute", args.rows.dtype(), [&](auto type) {
    using T = decltype(type);
    ParallelFor(ctx, args.row_of.dim(0), 32, [&](int64_t begin, int64_t end) {
      KeptRows kept;
      for (int64_t t = begin; t < end; ++t) {
        const TokenRows<T> token =
            kept.Of<T>({args.rows.data<T>(), args.row_of.data<int32_t>() + t * k,
                        weights == nullptr ? nullptr : weights + t * k, k, d});
        T* y = args.y.data<T>() + t * d;
        if (token.k == 0) {
          std::fill_n(y, d, T());
        } else {
          CombineToken(token, y);
        }
      }
    });
  });
}

void CombineGradAny(Context& ctx, const CombineGradArgs& args) {
  const int64_t k = args.row_of.dim(1), d = args.rows.dim(1);
  VisitComputeType("unpermute", args.rows.dtype(), [&](auto type) {
    using T = decltype(type);
    ParallelFor(ctx, args.row_of.numel(), 32, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        const int64_t row = args.row_of.data<int32_t>()[j] * d;
        if (row < 0) {
          args.dweights.data<float>()[j] = 0;
          continue;
        }
        args.dweights.data<float>()[j] =
            GradRow<T>(args.rows.data<T>() + row, args.dy.data<T>() + j / k * d,
                       args.weights.data<float>()[j], args.drows.data<T>() + row, d);
      }
    });
  });
}

}  // namespace
}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(CombineAny);
HWY_EXPORT(CombineGradAny);

void CombineCpu(Context& ctx, const CombineArgs& args) {
  HWY_DYNAMIC_DISPATCH(CombineAny)(ctx, args);
}
void CombineGradCpu(Context& ctx, const CombineGradArgs& args) {
  HWY_DYNAMIC_DISPATCH(CombineGradAny)(ctx, args);
}

}  // namespace cadre::ops
#endif
