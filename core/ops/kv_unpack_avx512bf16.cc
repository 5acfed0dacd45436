#include <immintrin.h>

#include <bit>

#include "core/ops/kv_quantize.h"

namespace cadre::ops {
namespace {

// Bytes of bf16 from 0 to 127.
struct alignas(64) Magnitudes {
  uint8_t low[128], high[128];
};

constexpr Magnitudes MakeMagnitudes() {
  Magnitudes m{};
  for (int i = 0; i < 128; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(i));
    m.low[i] = static_cast<uint8_t>(bits >> 16);
    m.high[i] = static_cast<uint8_t>(bits >> 24);
  }
  return m;
}

__attribute__((target("avx512vbmi"))) void Unpack8(const std::byte* codes, int64_t n, BF16* to) {
  static constexpr Magnitudes kTable = MakeMagnitudes();
  const __m512i low0 = _mm512_load_si512(kTable.low), low1 = _mm512_load_si512(kTable.low + 64);
  const __m512i high0 = _mm512_load_si512(kTable.high);
  const __m512i high1 = _mm512_load_si512(kTable.high + 64);
  const __m512i sign = _mm512_set1_epi8(static_cast<char>(0x80));
  // Interleaving works on quarters: the first and the second half of the codes alternate in them.
  const __m512i halves = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t i = 0; i < n; i += 64) {
    const __m512i x = _mm512_permutexvar_epi64(halves, _mm512_loadu_si512(codes + i));
    const __m512i at = _mm512_abs_epi8(x);
    const __m512i low = _mm512_permutex2var_epi8(low0, at, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, at, high1);
    const __m512i high = _mm512_or_si512(magnitude, _mm512_and_si512(x, sign));
    _mm512_storeu_si512(to + i, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(to + i + 32, _mm512_unpackhi_epi8(low, high));
  }
}

// What the low five bits of a word stand for: a code and a bit of the next one.
struct alignas(64) CodeWords {
  uint16_t words[32];
};

constexpr CodeWords MakeCodeWords() {
  CodeWords table{};
  for (int i = 0; i < 32; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(i % 16 - 8));
    table.words[i] = static_cast<uint16_t>(bits >> 16);
  }
  return table;
}

void Unpack4(const std::byte* codes, int64_t n, BF16* to) {
  static constexpr CodeWords kTable = MakeCodeWords();
  const __m512i table = _mm512_load_si512(kTable.words);
  for (int64_t i = 0; i < n; i += 128, codes += 64, to += 128) {
    const __m512i words = _mm512_loadu_si512(codes);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(words, table));
    _mm512_storeu_si512(to + 32, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table));
    _mm512_storeu_si512(to + 64, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table));
    _mm512_storeu_si512(to + 96, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table));
  }
}

}  // namespace

void UnpackKvAvx512(KvQuantization quantization, const std::byte* codes, int64_t n, BF16* to) {
  // Not every machine that multiplies bf16 looks up bytes.
  static const bool lookup = __builtin_cpu_supports("avx512vbmi");
  if (quantization == KvQuantization::kInt4) {
    Unpack4(codes, n, to);
  } else if (lookup) {
    Unpack8(codes, n, to);
  } else {
    UnpackKv(quantization, codes, n, to);
  }
}

}  // namespace cadre::ops
