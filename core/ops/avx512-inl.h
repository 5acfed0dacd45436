// What the AVX-512 and AMX kernels share. Included by *_avx512bf16.cc and *_amx.cc alone: each
// compiles it with flags of its own, so nothing here has linkage.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "core/ops/gemm_panels.h"

namespace cadre::ops {
namespace {

// Pairs along k of 16 rows or columns; one row's pair for all 16 lanes.
[[maybe_unused]] __m512bh LoadPairs(const void* from) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from));
}
[[maybe_unused]] __m512bh BroadcastPair(const void* from) {
  int32_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

[[maybe_unused]] __mmask32 ColumnMask(int64_t left) {
  return left >= 32 ? 0xffffffffu : (1u << left) - 1;
}

// 16 rows of 16 dwords, transposed in place.
[[maybe_unused]] void Transpose16x16(__m512i* r) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// The bits of n <= 32 lanes from `lane`, 16 at a time.
[[maybe_unused]] __mmask16 LaneMask(int64_t n, int64_t lane) {
  return static_cast<__mmask16>(ColumnMask(n) >> lane);
}

// 16 sums of one row of c from `column`: bias and what c holds added; `mask` tells which are c's.
[[maybe_unused]] __m512 Finished(const PanelGemmArgs& args, const float* sums, int64_t at,
                                 int64_t column, __mmask16 mask) {
  __m512 value = _mm512_load_ps(sums);
  if (args.bias.defined()) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, args.bias.data<BF16>() + column);
    value = _mm512_add_ps(value,
                          _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
  }
  if (args.accumulate) {
    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, args.c.data<float>() + at));
  }
  return value;
}

// Sums of a pair of panels (the second may be null) into `width` columns of one row of c.
[[maybe_unused]] void StoreRow(const PanelGemmArgs& args, const float* first, const float* second,
                               int64_t row, int64_t column, int64_t width) {
  const int64_t at = row * args.b.n + column;
  const __mmask16 low = LaneMask(width, 0), high = LaneMask(width, 16);
  const __m512 left = Finished(args, first, at, column, low);
  const __m512 right =
      second == nullptr ? _mm512_setzero_ps() : Finished(args, second, at + 16, column + 16, high);
  if (args.c.dtype() == DType::kF32) {
    _mm512_mask_storeu_ps(args.c.data<float>() + at, low, left);
    if (high != 0) _mm512_mask_storeu_ps(args.c.data<float>() + at + 16, high, right);
    return;
  }
  _mm512_mask_storeu_epi16(args.c.data<BF16>() + at, ColumnMask(width),
                           reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
}

// Asks for `rows` rows of c, `width` columns each, before they are written.
[[maybe_unused]] void PrefetchRows(const PanelGemmArgs& args, int64_t row, int64_t rows,
                                   int64_t column, int64_t width) {
  const int64_t size = static_cast<int64_t>(SizeOf(args.c.dtype()));
  std::byte* c = args.c.raw() + (row * args.b.n + column) * size;
  for (int64_t r = 0; r < rows; ++r, c += args.b.n * size) {
    __builtin_prefetch(c, 1);
    __builtin_prefetch(c + width * size - 1, 1);
  }
}

}  // namespace
}  // namespace cadre::ops
