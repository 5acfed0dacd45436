#include <algorithm>

#include "core/ops/gemm_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/gemm_simd_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// A panel's 16 columns in vectors of at most 16 lanes.
using DP = hn::CappedTag<float, kPanelColumns>;
using VP = hn::Vec<DP>;
constexpr size_t kVectors = kPanelColumns / hn::MaxLanes(DP());

// acc[r] += a[r][k] * b[k], one k after the other.
template <size_t kRows>
HWY_INLINE void Accumulate(const float* a, int64_t k_count, const float* b, VP (*acc)[kVectors]) {
  const DP d;
  for (int64_t k = 0; k < k_count; ++k) {
    for (size_t v = 0; v < kVectors; ++v) {
      const VP column = hn::LoadU(d, b + k * kPanelColumns + v * hn::Lanes(d));
      for (size_t r = 0; r < kRows; ++r) {
        acc[r][v] = hn::MulAdd(hn::Set(d, a[r * k_count + k]), column, acc[r][v]);
      }
    }
  }
}

template <size_t kRows>
HWY_INLINE void Accumulate(const BF16* a, int64_t k_count, const BF16* b, VP (*acc)[kVectors]) {
  const DP d;
  const hn::RebindToUnsigned<DP> du;
  const auto* pairs = reinterpret_cast<const uint32_t*>(b);
  for (int64_t k = 0; k < k_count; k += 2) {
    for (size_t v = 0; v < kVectors; ++v) {
      const auto pair = hn::LoadU(du, pairs + k / 2 * kPanelColumns + v * hn::Lanes(d));
      const VP even = hn::BitCast(d, hn::ShiftLeft<16>(pair));
      const VP odd = hn::BitCast(d, hn::And(pair, hn::Set(du, 0xffff0000u)));
      for (size_t r = 0; r < kRows; ++r) {
        const BF16* row = a + r * k_count + k;
        acc[r][v] = hn::MulAdd(hn::Set(d, static_cast<float>(row[0])), even, acc[r][v]);
        // An odd count's partner is padding, whose product would add 0 (or -0): left out.
        if (k + 1 < k_count)
          acc[r][v] = hn::MulAdd(hn::Set(d, static_cast<float>(row[1])), odd, acc[r][v]);
      }
    }
  }
}

// One row of 16 sums into columns [column, column + width) of c's row.
template <typename TC, typename TB>
void StoreRow(const float* sums, const TB* bias, bool accumulate, TC* c, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    float value = sums[i];
    if (bias != nullptr) value += static_cast<float>(bias[i]);
    if (accumulate) value += static_cast<float>(c[i]);
    c[i] = static_cast<TC>(value);
  }
}

// a: kRows rows of k elements, rows [row, row + kRows) of the left-hand matrix.
template <size_t kRows, typename T, typename TC>
void RowsByPanel(const PanelGemmArgs& args, const T* a, int64_t row, int64_t panel) {
  const DP d;
  const int64_t k = args.b.k, n = args.b.n, column = panel * kPanelColumns;
  const T* b = reinterpret_cast<const T*>(args.b.data.raw() + panel * args.b.panel_bytes());
  VP acc[kRows][kVectors];
  for (auto& vectors : acc) {
    for (VP& v : vectors) v = hn::Zero(d);
  }
  Accumulate<kRows>(a, k, b, acc);
  const T* bias = args.bias.defined() ? args.bias.data<T>() + column : nullptr;
  for (size_t r = 0; r < kRows; ++r) {
    HWY_ALIGN float sums[kPanelColumns];
    for (size_t v = 0; v < kVectors; ++v) hn::Store(acc[r][v], d, sums + v * hn::Lanes(d));
    StoreRow(sums, bias, args.accumulate, args.c.data<TC>() + (row + r) * n + column,
             std::min(kPanelColumns, n - column));
  }
}

// Columns [row, row + rows) of x [k, m] become rows of k elements.
template <typename T>
void TransposeColumns(const T* x, int64_t k_count, int64_t m, int64_t row, int64_t rows, T* to) {
  for (int64_t r = 0; r < rows; r += 16) {
    const int64_t width = std::min<int64_t>(16, rows - r);
    for (int64_t k = 0; k < k_count; ++k) {
      for (int64_t i = 0; i < width; ++i) to[(r + i) * k_count + k] = x[k * m + row + r + i];
    }
  }
}

template <typename T, typename TC>
void Block(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch) {
  constexpr int64_t kStrip = kVectors == 1 ? 8 : 4;
  const int64_t k = args.b.k;
  const T* data = reinterpret_cast<const T*>(args.a.data);
  const T* left = data + block.row * k;
  if (args.a.transposed) {
    T* rows = reinterpret_cast<T*>(scratch);
    TransposeColumns(data, k, args.a.rows, block.row, block.rows, rows);
    left = rows;
  }
  for (int64_t panel = block.panel; panel < block.panel + block.panels; ++panel) {
    int64_t r = 0;
    for (; r + kStrip <= block.rows; r += kStrip) {
      RowsByPanel<kStrip, T, TC>(args, left + r * k, block.row + r, panel);
    }
    for (; r < block.rows; ++r) RowsByPanel<1, T, TC>(args, left + r * k, block.row + r, panel);
  }
}

void AnyBlock(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch) {
  if (args.b.dtype == DType::kF32) return Block<float, float>(args, block, scratch);
  if (args.c.dtype() == DType::kF32) return Block<BF16, float>(args, block, scratch);
  Block<BF16, BF16>(args, block, scratch);
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(AnyBlock);

void GemmBlockSimd(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(AnyBlock)(args, block, scratch);
}

}  // namespace cadre::ops
#endif
