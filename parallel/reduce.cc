#include "parallel/reduce.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

namespace cadre {
namespace {

// Elements that are summed at a time; the accumulators stay in the first-level cache.
constexpr int64_t kBlock = 1024;

template <typename T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<BF16> {
  using type = float;
};
template <>
struct AccumulatorOf<F16> {
  using type = float;
};

template <typename A>
A Max(A a, A b) {
  if constexpr (std::is_floating_point_v<A>) {
    if (std::isnan(a)) return a;
    if (std::isnan(b)) return b;
  }
  return std::max(a, b);
}

// Wraps for integers, where a signed overflow would be undefined.
template <typename A>
A Add(A a, A b) {
  if constexpr (std::is_integral_v<A>) {
    using U = std::make_unsigned_t<A>;
    return static_cast<A>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

template <typename T, typename A>
void ReduceBlock(ReduceOp op, std::span<const std::byte* const> sources, int64_t begin,
                 int64_t count, A* acc) {
  const auto* first = reinterpret_cast<const T*>(sources[0]) + begin;
  for (int64_t i = 0; i < count; ++i) acc[i] = static_cast<A>(first[i]);
  for (size_t r = 1; r < sources.size(); ++r) {
    const auto* source = reinterpret_cast<const T*>(sources[r]) + begin;
    if (op == ReduceOp::kMax) {
      for (int64_t i = 0; i < count; ++i) acc[i] = Max(acc[i], static_cast<A>(source[i]));
    } else {
      for (int64_t i = 0; i < count; ++i) acc[i] = Add(acc[i], static_cast<A>(source[i]));
    }
  }
}

template <typename T>
void Reduce(ReduceOp op, std::span<const std::byte* const> sources, int64_t numel, std::byte* out) {
  using A = typename AccumulatorOf<T>::type;
  A acc[kBlock];
  auto* to = reinterpret_cast<T*>(out);
  for (int64_t begin = 0; begin < numel; begin += kBlock) {
    const int64_t count = std::min(kBlock, numel - begin);
    ReduceBlock<T, A>(op, sources, begin, count, acc);
    if constexpr (!std::is_integral_v<T>) {
      if (op == ReduceOp::kAverage) {
        const A n = static_cast<A>(sources.size());
        for (int64_t i = 0; i < count; ++i) acc[i] /= n;
      }
    }
    for (int64_t i = 0; i < count; ++i) to[begin + i] = static_cast<T>(acc[i]);
  }
}

}  // namespace

void CheckReduction(DType dtype, ReduceOp op) {
  const bool floating =
      dtype == DType::kF64 || dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
  CADRE_CHECK(floating || op != ReduceOp::kAverage, "an average of {}", Name(dtype));
}

void ReduceInRankOrder(DType dtype, ReduceOp op, std::span<const std::byte* const> sources,
                       int64_t numel, std::byte* out) {
  CheckReduction(dtype, op);
  switch (dtype) {
    case DType::kF64:
      return Reduce<double>(op, sources, numel, out);
    case DType::kF32:
      return Reduce<float>(op, sources, numel, out);
    case DType::kBF16:
      return Reduce<BF16>(op, sources, numel, out);
    case DType::kF16:
      return Reduce<F16>(op, sources, numel, out);
    case DType::kI8:
      return Reduce<int8_t>(op, sources, numel, out);
    case DType::kU8:
      return Reduce<uint8_t>(op, sources, numel, out);
    case DType::kI32:
      return Reduce<int32_t>(op, sources, numel, out);
    case DType::kI64:
      return Reduce<int64_t>(op, sources, numel, out);
  }
  __builtin_unreachable();
}

}  // namespace cadre
