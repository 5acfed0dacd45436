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

// How finished sums go to c.
enum class StoreKind : uint8_t { kRounded, kFloat, kAdded };

[[maybe_unused]] StoreKind StoreKindOf(const PanelGemmArgs& args) {
  if (args.c.dtype() == DType::kBF16) return StoreKind::kRounded;
  return args.accumulate ? StoreKind::kAdded : StoreKind::kFloat;
}

inline __m512 LoadBf16(const BF16* from, __mmask16 mask) {
  const __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Sums of a pair of panels into `width` columns of one row of c, to which `to` points; bias (or
// null) begins at the same column.
template <StoreKind kKind>
inline void StoreRow(const float* first, const float* second, const BF16* bias, int64_t width,
                     std::byte* to) {
  const __mmask32 mask = ColumnMask(width);
  const __mmask16 low = static_cast<__mmask16>(mask), high = static_cast<__mmask16>(mask >> 16);
  __m512 left = _mm512_load_ps(first), right = _mm512_load_ps(second);
  if (bias != nullptr) {
    left = _mm512_add_ps(left, LoadBf16(bias, low));
    right = _mm512_add_ps(right, LoadBf16(bias + kPanelColumns, high));
  }
  if constexpr (kKind == StoreKind::kRounded) {
    _mm512_mask_storeu_epi16(to, mask, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(right, left)));
    return;
  }
  float* c = reinterpret_cast<float*>(to);
  if constexpr (kKind == StoreKind::kAdded) {
    left = _mm512_add_ps(left, _mm512_maskz_loadu_ps(low, c));
    right = _mm512_add_ps(right, _mm512_maskz_loadu_ps(high, c + kPanelColumns));
  }
  _mm512_mask_storeu_ps(c, low, left);
  _mm512_mask_storeu_ps(c + kPanelColumns, high, right);
}

// The sums of some rows: those of the next row lie row_stride on. Both pointers are readable for 16
// columns wherever `width` ends.
struct StripSums {
  const float *first, *second;
  int64_t row_stride;
  int64_t row, rows;  // of c
};

template <StoreKind kKind>
void StoreRowsAs(const PanelGemmArgs& args, const StripSums& sums, int64_t column, int64_t width) {
  const int64_t size = kKind == StoreKind::kRounded ? 2 : 4;
  std::byte* to = args.c.raw() + (sums.row * args.b.n + column) * size;
  const BF16* bias = args.bias.defined() ? args.bias.data<BF16>() + column : nullptr;
  for (int64_t r = 0; r < sums.rows; ++r, to += args.b.n * size) {
    const int64_t at = r * sums.row_stride;
    StoreRow<kKind>(sums.first + at, sums.second + at, bias, width, to);
  }
}

[[maybe_unused]] void StoreRows(const PanelGemmArgs& args, const StripSums& sums, int64_t column,
                                int64_t width) {
  switch (StoreKindOf(args)) {
    case StoreKind::kRounded:
      return StoreRowsAs<StoreKind::kRounded>(args, sums, column, width);
    case StoreKind::kFloat:
      return StoreRowsAs<StoreKind::kFloat>(args, sums, column, width);
    case StoreKind::kAdded:
      return StoreRowsAs<StoreKind::kAdded>(args, sums, column, width);
  }
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
