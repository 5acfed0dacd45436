#include <algorithm>

#include "core/ops/attention_kernels.h"
#include "core/ops/avx512-inl.h"

namespace cadre::ops {

namespace {

// 2^x: 0 below the range, NaN for NaN. The polynomial is the fit of 2^f to degree 5 with
// the least relative error on [0, 1], 2e-7, with 2^0 exactly 1.
inline __m512 Exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x09);  // x - floor(x)
  __m512 p = _mm512_set1_ps(0.00186713017f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00901702978f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0557999127f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240164444f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693151295f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);
}

struct Max {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};
struct Sum {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_add_ps(a, b); }
};

// Four vectors to one whose 128-bit part i holds four partials of vector i.
template <typename Op>
inline __m512 Reduce4(const __m512* v, Op op) {
  const __m512 a =
      op(_mm512_shuffle_f32x4(v[0], v[4], 0x44), _mm512_shuffle_f32x4(v[0], v[4], 0xee));
  const __m512 b =
      op(_mm512_shuffle_f32x4(v[8], v[12], 0x44), _mm512_shuffle_f32x4(v[8], v[12], 0xee));
  return op(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// Lane i is the reduction of v[i], in one order for every i.
template <typename Op>
inline __m512 Reduce16(const __m512* v, Op op) {
  const __m512 a = Reduce4(v, op), b = Reduce4(v + 1, op);
  const __m512 c = Reduce4(v + 2, op), d = Reduce4(v + 3, op);
  const __m512 ab = op(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  const __m512 cd = op(_mm512_shuffle_ps(c, d, 0x44), _mm512_shuffle_ps(c, d, 0xee));
  return op(_mm512_shuffle_ps(ab, cd, 0x88), _mm512_shuffle_ps(ab, cd, 0xdd));
}

inline __m512i Round(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

template <int kVectors>
void StoreP(const __m512* e, BF16* p) {
  for (int i = 0; i < kVectors; i += 2) _mm512_storeu_si512(p + i * 16, Round(e[i], e[i + 1]));
}
template <int kVectors>
void StoreP(const __m512* e, float* p) {
  for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(p + i * 16, e[i]);
}

// P: BF16, or float where p is not to be rounded. `count` rows of 16.
template <int kVectors, typename P>
void Softmax16(const float* scores, float scale, const bool* seen, int count, float* max,
               float* sum, P* p) {
  constexpr int64_t kT = kAttentionKeyTile;
  __m512 rows[16];
  for (int r = count; r < 16; ++r) rows[r] = _mm512_setzero_ps();
  for (int r = 0; r < count; ++r) {
    __m512 most = _mm512_loadu_ps(scores + r * kT);
    for (int i = 1; i < kVectors; ++i) {
      most = _mm512_max_ps(most, _mm512_loadu_ps(scores + r * kT + i * 16));
    }
    rows[r] = most;
  }
  const __m512 by = _mm512_set1_ps(scale);
  const __m512 most = _mm512_mul_ps(Reduce16(rows, Max()), by);
  const __m128i seen_bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(seen));
  const __mmask16 any = _mm_test_epi8_mask(seen_bytes, seen_bytes);
  _mm512_storeu_ps(max, most);
  // Where nothing is seen all scores are minus infinity and nothing is subtracted.
  alignas(64) float shift[16];
  _mm512_store_ps(shift, _mm512_maskz_mov_ps(any, most));
  for (int r = 0; r < count; ++r) {
    const __m512 by_row = _mm512_set1_ps(shift[r]);
    __m512 e[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      e[i] = Exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + r * kT + i * 16), by, by_row));
    }
    StoreP<kVectors>(e, p + r * kT);
    __m512 total = _mm512_add_ps(e[0], e[1]);
    for (int i = 2; i < kVectors; i += 2) {
      total = _mm512_add_ps(total, _mm512_add_ps(e[i], e[i + 1]));
    }
    rows[r] = total;
  }
  _mm512_storeu_ps(sum, Reduce16(rows, Sum()));
}

template <typename P>
void SoftmaxRows(const AttentionSoftmaxRows& s, P* to) {
  for (int64_t r = 0; r < s.rows; r += 16) {
    const float* scores = s.scores + r * kAttentionKeyTile;
    P* p = to + r * kAttentionKeyTile;
    const int count = static_cast<int>(std::min<int64_t>(16, s.rows - r));
    if (s.n == 64) {
      Softmax16<4>(scores, s.scale, s.seen + r, count, s.max + r, s.sum + r, p);
    } else {
      Softmax16<2>(scores, s.scale, s.seen + r, count, s.max + r, s.sum + r, p);
    }
  }
}

// p and ds of one key for 16 queries.
template <bool kMasked>
inline void GradScore(const AttentionGradScores& g, int64_t key, int64_t r, __m512* p, __m512* ds) {
  const int64_t at = key * kAttentionGradTile + r;
  __m512 x = _mm512_fmsub_ps(_mm512_loadu_ps(g.scores + at), _mm512_set1_ps(g.scale),
                             _mm512_loadu_ps(g.lse + r));
  *p = Exp2(x);
  if constexpr (kMasked) {
    const __m512i position = _mm512_loadu_si512(g.positions + r);
    const __m512i here = _mm512_set1_epi32(g.key_positions[key]);
    __mmask16 seen = _mm512_cmple_epi32_mask(here, position);
    if (g.window > 0) {
      seen &=
          _mm512_cmpgt_epi32_mask(here, _mm512_sub_epi32(position, _mm512_set1_epi32(g.window)));
    }
    *p = _mm512_maskz_mov_ps(seen, *p);
  }
  *ds = _mm512_mul_ps(*p, _mm512_sub_ps(_mm512_loadu_ps(g.dp + at), _mm512_loadu_ps(g.delta + r)));
}

template <bool kMasked>
void GradScores(const AttentionGradScores& g) {
  constexpr int64_t kR = kAttentionGradTile;
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(kInterleave);
  auto store = [](BF16* to, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
  };
  for (int64_t key = 0; key < g.keys; key += 2) {
    for (int64_t r = 0; r < kR; r += 16) {
      __m512 p[2], ds[2];
      GradScore<kMasked>(g, key, r, p, ds);
      GradScore<kMasked>(g, key + 1, r, p + 1, ds + 1);
      const int64_t at = key * kR + r;
      const __m512i p_pair = Round(p[0], p[1]), ds_pair = Round(ds[0], ds[1]);
      store(g.p + at, _mm512_castsi512_si256(p_pair));
      store(g.p + at + kR, _mm512_extracti64x4_epi64(p_pair, 1));
      store(g.ds + at, _mm512_castsi512_si256(ds_pair));
      store(g.ds + at + kR, _mm512_extracti64x4_epi64(ds_pair, 1));
      _mm512_storeu_si512(g.ds_rows + key * kR + r * 2,
                          _mm512_permutexvar_epi16(interleave, ds_pair));
    }
  }
}

// `n` of the 32 elements from `from`; the rest, and all of a null row, are zero.
inline __m512i LoadRow(const BF16* from, int64_t n) {
  if (from == nullptr || n <= 0) return _mm512_setzero_si512();
  if (n >= 32) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, from);
}

}  // namespace

void AttentionSoftmaxBf16(const AttentionSoftmaxRows& s) {
  if (s.wide_p == nullptr) {
    SoftmaxRows(s, s.p);
  } else {
    SoftmaxRows(s, s.wide_p);
  }
}

void AttentionScaleBf16(const AttentionScaleRows& s) {
  for (int64_t r = 0; r < s.rows; ++r) {
    for (int64_t i = 0; i < s.n; i += 32) {
      const int64_t at = r * kAttentionKeyTile + i;
      auto scaled = [&](int64_t half) {
        return _mm512_mul_ps(_mm512_loadu_ps(s.p + at + half),
                             _mm512_loadu_ps(s.scales + i + half));
      };
      _mm512_storeu_si512(s.to + at, Round(scaled(0), scaled(16)));
    }
  }
}

void AttentionGradScoresBf16(const AttentionGradScores& g) {
  if (g.masked) {
    GradScores<true>(g);
  } else {
    GradScores<false>(g);
  }
}

void AttentionPanelBf16(const BF16* const* rows, int64_t n, int64_t padded, BF16* to) {
  for (int64_t d = 0; d < padded; d += 32) {
    __m512i v[16];
    for (int r = 0; r < 16; ++r) v[r] = LoadRow(rows[r] == nullptr ? nullptr : rows[r] + d, n - d);
    Transpose16x16(v);
    for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (d / 2 + i) * 32, v[i]);
  }
}

void AttentionPairBf16(const BF16* even, const BF16* odd, int64_t n, int64_t padded, BF16* to) {
  for (int64_t d = 0; d < padded; d += 16) {
    const int64_t left = std::min<int64_t>(16, n - d);
    auto load = [&](const BF16* row) {
      return _mm512_cvtepu16_epi32(
          _mm512_castsi512_si256(LoadRow(row == nullptr ? nullptr : row + d, left)));
    };
    _mm512_storeu_si512(to + d * 2, _mm512_or_si512(load(even), _mm512_slli_epi32(load(odd), 16)));
  }
}

void AttentionTransposePanelBf16(const BF16* panel, int64_t padded, int64_t stride, BF16* to) {
  for (int64_t d = 0; d < padded; d += 2) {
    const __m512i pairs = _mm512_loadu_si512(panel + d * 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + d * stride), _mm512_cvtepi32_epi16(pairs));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (d + 1) * stride),
                        _mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
  }
}

void AttentionStoreTransposedBf16(const float* from, int64_t stride, float scale, int64_t n,
                                  BF16* const* rows) {
  for (int64_t d = 0; d < n; d += 16) {
    const int64_t left = std::min<int64_t>(16, n - d);
    __m512i v[16];
    for (int i = 0; i < 16; ++i) {
      v[i] = i < left ? _mm512_loadu_si512(from + (d + i) * stride) : _mm512_setzero_si512();
    }
    Transpose16x16(v);
    for (int r = 0; r < 16; ++r) {
      if (rows[r] == nullptr) continue;
      const __m512 scaled = _mm512_mul_ps(_mm512_castsi512_ps(v[r]), _mm512_set1_ps(scale));
      _mm256_mask_storeu_epi16(rows[r] + d, static_cast<__mmask16>((1u << left) - 1),
                               reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(scaled)));
    }
  }
}

}  // namespace cadre::ops
