// Products of bf16 rows with quantized panels on any machine: a panel is widened to fp32 once for
// all rows of a block.
#include <algorithm>

#include "core/ops/gemm_quant_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/ops/gemm_quant_simd_cpu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

using DP = hn::CappedTag<float, kPanelColumns>;
using VP = hn::Vec<DP>;
constexpr size_t kVectors = kPanelColumns / hn::MaxLanes(DP());

// [k][16], less `zero`.
void WidenPanel(const QuantizedMatrix& w, int64_t panel, float* to) {
  const std::byte* codes = w.codes.raw() + panel * w.panel_bytes();
  if (w.bits == 8) {
    const auto* bytes = reinterpret_cast<const int8_t*>(codes);
    for (int64_t i = 0; i < w.k * kPanelColumns; ++i) to[i] = static_cast<float>(bytes[i] - w.zero);
    return;
  }
  const auto* words = reinterpret_cast<const uint16_t*>(codes);
  for (int64_t k = 0; k < w.k; ++k) {
    const uint16_t* from = words + k / 8 * 32 + k % 2;
    const int shift = static_cast<int>(k % 8 / 2 * 4);
    for (int64_t c = 0; c < kPanelColumns; ++c) {
      to[k * kPanelColumns + c] = static_cast<float>((from[c * 2] >> shift & 15) - w.zero);
    }
  }
}

void ScalesOf(const Tensor& scales, int64_t at, float* to) {
  for (int64_t c = 0; c < kPanelColumns; ++c) {
    to[c] = scales.dtype() == DType::kF32
                ? scales.data<float>()[at * kPanelColumns + c]
                : static_cast<float>(scales.data<F16>()[at * kPanelColumns + c]);
  }
}

template <size_t kRows>
HWY_INLINE void AddRows(const BF16* a, const QuantizedMatrix& w, int64_t panel, const float* wide,
                        VP (*total)[kVectors]) {
  const DP d;
  const int64_t groups = w.groups();
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * w.group, end = std::min(w.k, begin + w.group);
    VP acc[kRows][kVectors];
    float sums[kRows] = {};
    for (auto& vectors : acc) {
      for (VP& v : vectors) v = hn::Zero(d);
    }
    for (int64_t k = begin; k < end; ++k) {
      for (size_t v = 0; v < kVectors; ++v) {
        const VP column = hn::LoadU(d, wide + k * kPanelColumns + v * hn::Lanes(d));
        for (size_t r = 0; r < kRows; ++r) {
          const VP left = hn::Set(d, static_cast<float>(a[r * w.k + k]));
          acc[r][v] = hn::MulAdd(left, column, acc[r][v]);
        }
      }
    }
    HWY_ALIGN float scale[kPanelColumns], min[kPanelColumns] = {};
    ScalesOf(w.scales, panel * groups + g, scale);
    if (w.mins.defined()) {
      ScalesOf(w.mins, panel * groups + g, min);
      for (size_t r = 0; r < kRows; ++r) {
        for (int64_t k = begin; k < end; ++k) sums[r] += static_cast<float>(a[r * w.k + k]);
      }
    }
    for (size_t v = 0; v < kVectors; ++v) {
      const VP s = hn::Load(d, scale + v * hn::Lanes(d)), m = hn::Load(d, min + v * hn::Lanes(d));
      for (size_t r = 0; r < kRows; ++r) {
        total[r][v] = hn::MulAdd(acc[r][v], s, total[r][v]);
        if (w.mins.defined()) total[r][v] = hn::NegMulAdd(m, hn::Set(d, sums[r]), total[r][v]);
      }
    }
  }
}

template <size_t kRows, typename TC>
void RowsByPanel(const QuantBlock& quant, const BF16* a, int64_t row, int64_t panel,
                 const float* wide) {
  const DP d;
  const PanelGemmArgs& gemm = quant.gemm;
  VP total[kRows][kVectors];
  for (auto& vectors : total) {
    for (VP& v : vectors) v = hn::Zero(d);
  }
  AddRows<kRows>(a, quant.weights, panel, wide, total);
  const int64_t first = panel * kPanelColumns, column = quant.column + first;
  const int64_t width = std::min(kPanelColumns, quant.weights.n - first);
  for (size_t r = 0; r < kRows; ++r) {
    HWY_ALIGN float sums[kPanelColumns];
    for (size_t v = 0; v < kVectors; ++v) hn::Store(total[r][v], d, sums + v * hn::Lanes(d));
    TC* to = gemm.c.data<TC>() + (row + static_cast<int64_t>(r)) * gemm.b.n + column;
    for (int64_t i = 0; i < width; ++i) {
      const float bias =
          gemm.bias.defined() ? static_cast<float>(gemm.bias.data<BF16>()[column + i]) : 0.0f;
      to[i] = static_cast<TC>(sums[i] + bias);
    }
  }
}

template <typename TC>
void Block(const QuantBlock& quant, std::byte* scratch) {
  constexpr int64_t kStrip = kVectors == 1 ? 8 : 4;
  const GemmBlock& block = quant.block;
  const int64_t k = quant.weights.k;
  const BF16* a = reinterpret_cast<const BF16*>(quant.gemm.a.data) + block.row * k;
  auto* wide = reinterpret_cast<float*>(scratch);
  for (int64_t panel = block.panel; panel < block.panel + block.panels; ++panel) {
    WidenPanel(quant.weights, panel, wide);
    int64_t r = 0;
    for (; r + kStrip <= block.rows; r += kStrip) {
      RowsByPanel<kStrip, TC>(quant, a + r * k, block.row + r, panel, wide);
    }
    for (; r < block.rows; ++r) {
      RowsByPanel<1, TC>(quant, a + r * k, block.row + r, panel, wide);
    }
  }
}

void AnyQuantBlock(const QuantBlock& quant, std::byte* scratch) {
  if (quant.gemm.c.dtype() == DType::kF32) return Block<float>(quant, scratch);
  Block<BF16>(quant, scratch);
}

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre::ops {

HWY_EXPORT(AnyQuantBlock);

void GemmBlockQuantSimd(const QuantBlock& quant, std::byte* scratch) {
  HWY_DYNAMIC_DISPATCH(AnyQuantBlock)(quant, scratch);
}

}  // namespace cadre::ops
#endif
