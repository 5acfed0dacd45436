// Packing of bf16 panels and tiles, for the AVX-512 and the AMX kernel.
#include "core/ops/avx512-inl.h"
#include "core/ops/gemm_kernels.h"

namespace cadre::ops {
namespace {

constexpr int64_t kTileBytes = 1024;  // 16 rows x 32 of k
constexpr int64_t kRowsAhead = 16;

// Rows k and k + 1 of x [K, n], 32 columns from `column`, as 16 dwords for the first 16 columns and
// 16 for the others; rows from K on are zero.
void PairOfRows(const BF16* x, int64_t k_count, int64_t n, int64_t k, int64_t column,
                __mmask32 mask, __m512i* low, __m512i* high) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i even = k < k_count ? _mm512_maskz_loadu_epi16(mask, x + k * n + column) : zero;
  const __m512i odd =
      k + 1 < k_count ? _mm512_maskz_loadu_epi16(mask, x + (k + 1) * n + column) : zero;
  auto half = [](__m512i v, bool upper) {
    return _mm512_cvtepu16_epi32(upper ? _mm512_extracti64x4_epi64(v, 1)
                                       : _mm512_castsi512_si256(v));
  };
  *low = _mm512_or_si512(half(even, false), _mm512_slli_epi32(half(odd, false), 16));
  *high = _mm512_or_si512(half(even, true), _mm512_slli_epi32(half(odd, true), 16));
}

}  // namespace

void PackPanelsAvx512(const BF16* x, int64_t k, int64_t n, int64_t column, std::byte* to,
                      std::byte* next) {
  const __mmask32 mask = ColumnMask(n - column);
  for (int64_t i = 0; i < (k + 31) / 32 * 32; i += 2) {
    __m512i low, high;
    // A row's piece is a line or two: too short for the hardware to see what comes.
    __builtin_prefetch(x + (i + kRowsAhead) * n + column);
    __builtin_prefetch(x + (i + kRowsAhead + 1) * n + column);
    PairOfRows(x, k, n, i, column, mask, &low, &high);
    _mm512_storeu_si512(to + i / 2 * 64, low);
    if (next != nullptr) _mm512_storeu_si512(next + i / 2 * 64, high);
  }
}

void TransposeStripAvx512(const BF16* x, int64_t k, int64_t m, int64_t column, std::byte* to) {
  const __mmask32 mask = ColumnMask(m - column);
  __m512i top[16], bottom[16];
  for (int64_t i = 0; i < k; i += 32, to += 2 * kTileBytes) {
    for (int64_t p = 0; p < 16; ++p)
      PairOfRows(x, k, m, i + 2 * p, column, mask, &top[p], &bottom[p]);
    Transpose16x16(top);
    Transpose16x16(bottom);
    for (int64_t p = 0; p < 16; ++p) {
      _mm512_storeu_si512(to + p * 64, top[p]);
      _mm512_storeu_si512(to + kTileBytes + p * 64, bottom[p]);
    }
  }
}

void PackTransposedPanelAvx512(const BF16* x, int64_t k, int64_t n, int64_t row, std::byte* to) {
  __m512i rows[16];
  for (int64_t i = 0; i < k; i += 32, to += kTileBytes) {
    const __mmask32 mask = ColumnMask(k - i);
    for (int64_t r = 0; r < 16; ++r) {
      rows[r] = row + r < n ? _mm512_maskz_loadu_epi16(mask, x + (row + r) * k + i)
                            : _mm512_setzero_si512();
    }
    Transpose16x16(rows);
    for (int64_t p = 0; p < 16; ++p) _mm512_storeu_si512(to + p * 64, rows[p]);
  }
}

}  // namespace cadre::ops
