// The kernels behind gemm_panels.h. Private to core/ops.
//
// Each computes the block rows [row, row + rows) x panels [panel, panel + panels) of c on the
// calling thread.
#pragma once

#include "core/ops/gemm_panels.h"

namespace cadre::ops {

inline constexpr int64_t kMaxBlockRows = 128;

struct GemmBlock {
  int64_t row, rows;  // at most kMaxBlockRows
  int64_t panel, panels;
};

// f32, and bf16 where there is no AMX; left-hand rows of k elements.
void GemmBlockSimd(const PanelGemmArgs& args, const GemmBlock& block);

// bf16 on AMX; left-hand rows or tiles.
bool AmxAvailable();  // of this machine and process; asks the kernel for the tile state once
// `scratch`: 64 bytes per row (of whole strips of 32) and 32 of k, for left-hand rows that are not
// tiles yet.
void GemmBlockAmx(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch);
// AMX packing. 32 columns of x [K, N] from `column` become panels `to` and `next` (null: 16 of
// them).
void PackPanelsAmx(const BF16* x, int64_t k, int64_t n, int64_t column, std::byte* to,
                   std::byte* next);
// Rows [row, row + 16) of the [N, K] matrix become panel `to`.
void PackTransposedPanelAmx(const BF16* x, int64_t k, int64_t n, int64_t row, std::byte* to);
// 32 columns of x [K, M] from `column` become the strip of tiles `to`.
void TransposeStripAmx(const BF16* x, int64_t k, int64_t m, int64_t column, std::byte* to);

}  // namespace cadre::ops
