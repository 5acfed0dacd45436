// The kernels behind gemm_panels.h. Private to core/ops.
//
// Each computes the block rows [row, row + rows) x panels [panel, panel + panels) of c on the
// calling thread.
#pragma once

#include "core/ops/gemm_panels.h"

namespace cadre::ops {

inline constexpr int64_t kMaxBlockRows = 256;

struct GemmBlock {
  int64_t row, rows;  // at most kMaxBlockRows
  int64_t panel, panels;
};

// f32, and bf16 where there is no AMX; left-hand rows of k elements.
void GemmBlockSimd(const PanelGemmArgs& args, const GemmBlock& block);

// bf16 on AMX; left-hand rows or tiles.
bool AmxAvailable();  // of this machine and process; asks the kernel for the tile state once
void GemmBlockAmx(const PanelGemmArgs& args, const GemmBlock& block);
// AMX packing of rows of k pairs: 16 columns of x [K, N] from `column` become panel `to`.
void PackPanelAmx(const BF16* x, int64_t k, int64_t n, int64_t column, std::byte* to);
// Rows [16 row_block, ...) of the [N, K] matrix become panel `to`.
void PackTransposedPanelAmx(const BF16* x, int64_t k, int64_t n, int64_t row, std::byte* to);
// 16 columns of x [K, M] from `column` become the row of tiles `to`.
void TransposeTilesAmx(const BF16* x, int64_t k, int64_t m, int64_t column, std::byte* to);

}  // namespace cadre::ops
