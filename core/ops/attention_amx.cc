#include <immintrin.h>

#include "core/ops/attention_kernels.h"

namespace cadre::ops {

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles 0..3 accumulate 2x2 blocks of 16x16, 4 and 5 hold rows of A, 6 and 7 panels of B.
template <int kRows, int kPanels>
void Block(const AttentionGemm& g, int64_t row, int64_t panel) {
  const auto* a = static_cast<const BF16*>(g.a) + row * g.lda;
  const auto* b = static_cast<const BF16*>(g.b) + panel * g.b_panel;
  float* c = g.c + row * g.ldc + panel * 16;
  const int64_t lda = g.lda * 2, ldb = g.b_row * 2, ldc = g.ldc * 4;
  if (g.accumulate) {
    _tile_loadd(0, c, ldc);
    if constexpr (kPanels == 2) _tile_loadd(1, c + 16, ldc);
    if constexpr (kRows == 2) _tile_loadd(2, c + 16 * g.ldc, ldc);
    if constexpr (kRows == 2 && kPanels == 2) _tile_loadd(3, c + 16 * g.ldc + 16, ldc);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < g.k; k += 32) {
    const BF16* bk = b + k / 2 * g.b_row;
    _tile_loadd(6, bk, ldb);
    _tile_loadd(4, a + k, lda);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, bk + g.b_panel, ldb);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRows == 2) {
      _tile_loadd(5, a + k + 16 * g.lda, lda);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kPanels == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, ldc);
  if constexpr (kPanels == 2) _tile_stored(1, c + 16, ldc);
  if constexpr (kRows == 2) _tile_stored(2, c + 16 * g.ldc, ldc);
  if constexpr (kRows == 2 && kPanels == 2) _tile_stored(3, c + 16 * g.ldc + 16, ldc);
}

template <int kRows>
void RowBlock(const AttentionGemm& g, int64_t row) {
  const int64_t panels = g.n / 16;
  int64_t panel = 0;
  for (; panel + 2 <= panels; panel += 2) Block<kRows, 2>(g, row, panel);
  if (panel < panels) Block<kRows, 1>(g, row, panel);
}

}  // namespace

void AttentionAmxBegin() {
  // Constant data: GCC 12's intrinsic tells the compiler of the first 8 bytes only.
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
}

void AttentionAmxEnd() { _tile_release(); }

void AttentionAmxGemm(const AttentionGemm& g) {
  int64_t row = 0;
  for (; row + 16 < g.m; row += 32) RowBlock<2>(g, row);
  if (row < g.m) RowBlock<1>(g, row);
}

}  // namespace cadre::ops
