// The kernels behind gemm_panels.h. Private to core/ops.
//
// Each computes the block rows [row, row + rows) x panels [panel, panel + panels) of c on the
// calling thread. `scratch` takes the block's left-hand rows in the kernel's own form: a multiple
// of 32 rows of k_padded elements.
#pragma once

#include <utility>
#include <vector>

#include "core/ops/gemm_panels.h"

namespace cadre::ops {

inline constexpr int64_t kMaxBlockRows = 128;

struct GemmBlock {
  int64_t row, rows;  // at most kMaxBlockRows
  int64_t panel, panels;
  // `scratch` is as the call for another block of the same rows, by the same weights, has left it.
  bool packed = false;
};

// Which rows each thread packed last: with few rows all blocks have the same, and packing them
// anew for each would cost a tenth of the product.
class LastPacked {
 public:
  explicit LastPacked(const Context& ctx) : rows_(static_cast<size_t>(ctx.threads), -1) {}
  // Whether thread `thread` packed `rows` (any name of them) last; it has from now on.
  bool Again(int thread, int64_t rows) {
    return std::exchange(rows_[static_cast<size_t>(thread)], rows) == rows;
  }

 private:
  std::vector<int64_t> rows_;
};

// f32, and bf16 for Bf16Kernel::kSimd.
void GemmBlockSimd(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch);

// bf16 of the other kernels.
void GemmBlockAvx512(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch);
void GemmBlockAmx(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch);

// Packing with AVX-512. 32 columns of x [K, N] from `column` become panels `to` and `next` (null:
// 16 of them).
void PackPanelsAvx512(const BF16* x, int64_t k, int64_t n, int64_t column, std::byte* to,
                      std::byte* next);
// Rows [row, row + 16) of the [N, K] matrix become panel `to`.
void PackTransposedPanelAvx512(const BF16* x, int64_t k, int64_t n, int64_t row, std::byte* to);
// 32 columns of x [K, M] from `column` become the strip of tiles `to`, for AMX.
void TransposeStripAvx512(const BF16* x, int64_t k, int64_t m, int64_t column, std::byte* to);

}  // namespace cadre::ops
