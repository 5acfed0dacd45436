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

// 16 sums into one row of c, at most `width` of them.
[[maybe_unused]] void StoreRow(const PanelGemmArgs& args, const float* sums, int64_t row,
                               int64_t column, int64_t width) {
  const __mmask16 mask = static_cast<__mmask16>((1u << width) - 1);
  __m512 value = _mm512_load_ps(sums);
  if (args.bias.defined()) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, args.bias.data<BF16>() + column);
    value = _mm512_add_ps(value,
                          _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)));
  }
  const int64_t at = row * args.b.n + column;
  if (args.c.dtype() == DType::kF32) {
    float* c = args.c.data<float>() + at;
    if (args.accumulate) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, c));
    return _mm512_mask_storeu_ps(c, mask, value);
  }
  const __m256bh rounded = _mm512_cvtneps_pbh(value);
  _mm256_mask_storeu_epi16(args.c.data<BF16>() + at, mask,
                           reinterpret_cast<const __m256i&>(rounded));
}

}  // namespace
}  // namespace cadre::ops
