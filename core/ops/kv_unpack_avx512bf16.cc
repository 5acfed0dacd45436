#include <immintrin.h>

#include "core/ops/kv_quantize.h"

namespace cadre::ops {
namespace {

void Unpack8(const std::byte* codes, int64_t n, BF16* to) {
  auto floats = [](const std::byte* from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  };
  for (int64_t i = 0; i < n; i += 32) {
    const __m512bh pairs = _mm512_cvtne2ps_pbh(floats(codes + i + 16), floats(codes + i));
    _mm512_storeu_si512(to + i, reinterpret_cast<__m512i>(pairs));
  }
}

// What the low five bits of a word stand for: a code and a bit of the next one.
__m512i CodeTable() {
  alignas(64) uint16_t table[32];
  for (int i = 0; i < 32; ++i) table[i] = BF16(static_cast<float>(i % 16 - 8)).bits;
  return _mm512_load_si512(table);
}

void Unpack4(const std::byte* codes, int64_t n, BF16* to) {
  const __m512i table = CodeTable();
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
  if (quantization == KvQuantization::kInt8) {
    Unpack8(codes, n, to);
  } else {
    Unpack4(codes, n, to);
  }
}

}  // namespace cadre::ops
