// Panels: the right-hand matrix of a product [K, N] cut into panels of 16 columns, each panel
// contiguous along k. In bf16 two neighbours in k lie side by side, as dot-product instructions and
// AMX tiles take them:
//
//   bf16: [N / 16][K / 2][16 columns][2]    K rounded up to 32, N to 16, with zeros
//   f32:  [N / 16][K][16 columns]
//
// The left-hand matrix is read as it lies; a kernel that wants another form packs a block of it
// into scratch before the panels pass by.
#pragma once

#include <cstdint>

#include "core/context.h"
#include "core/ops/bf16_kernel.h"

namespace cadre::ops {

inline constexpr int64_t kPanelColumns = 16;

struct Panels {
  int64_t k = 0, n = 0;  // of the matrix
  int64_t k_padded = 0;  // rows stored per panel
  DType dtype = DType::kF32;
  Tensor data;  // bytes

  int64_t count() const { return (n + kPanelColumns - 1) / kPanelColumns; }
  size_t panel_bytes() const {
    return static_cast<size_t>(k_padded * kPanelColumns) * SizeOf(dtype);
  }
};

// b is [K, N], or [N, K] with `transposed`; f32 or bf16. Fills `panels`, reusing its storage where
// the shape is the same. The bytes are the same for every `kernel`; AVX-512 packs faster.
void PackPanels(Context& ctx, const Tensor& b, bool transposed, Panels& panels,
                Bf16Kernel kernel = MachineBf16Kernel());

// The left-hand matrix of a product with panels: [rows, k], or [k, rows] with `transposed` (weight
// gradients sum over the rows of two activations).
struct LeftMatrix {
  const std::byte* data = nullptr;
  int64_t rows = 0;
  bool transposed = false;
};

struct PanelGemmArgs {
  LeftMatrix a;
  const Panels& b;
  Tensor c;  // [M, N] f32, or bf16 for bf16 panels
  bool accumulate = false;
  Tensor bias;
  Bf16Kernel kernel = MachineBf16Kernel();  // for bf16
};
// The product on the machine's best kernel, cut over threads by blocks of c.
void PanelGemm(Context& ctx, const PanelGemmArgs& args);

}  // namespace cadre::ops
