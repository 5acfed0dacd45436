// Between attention's driver and its matrix kernels; private to core/ops/attention_*.cc.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/ops/attention.h"

namespace cadre::ops {

// C[m, n] = A[m, k] B[k, n], or C += A B. A is row-major. B lies in panels of 16 columns: element
// (i, j) at b[i * b_row + j / 16 * b_panel + j % 16], or, where B holds pairs (bf16), (i, j) at
// b[i / 2 * b_row + j / 16 * b_panel + j % 16 * 2 + i % 2]. Strides count elements. n is a multiple
// of 16, k of 32 where B holds pairs; A and C have rows up to the next multiple of 16 of m, whose
// contents do not matter. A row of C is computed in an order that does not depend on m or n.
struct AttentionGemm {
  const void* a = nullptr;
  int64_t lda = 0;
  const void* b = nullptr;
  int64_t b_row = 0, b_panel = 0;
  float* c = nullptr;
  int64_t ldc = 0;
  int64_t m = 0, n = 0, k = 0;
  bool accumulate = false;
  // Bytes that will be read next, or null: kernels that wait for memory rather than multiply bring
  // them nearer meanwhile.
  const std::byte* next = nullptr;
  int64_t next_bytes = 0;
};

// Kernels and what must run around their use on each thread. `bf16`: A is bf16 and B holds pairs.
struct AttentionBackend {
  bool bf16 = false;
  void (*unpack)(KvQuantization, const std::byte* codes, int64_t n, BF16* to) = nullptr;
  void (*gemm)(const AttentionGemm&) = nullptr;
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
};

// For operands in fp32, and for an fp32 A with a B of bf16 pairs; any machine.
void AttentionGemmF32(const AttentionGemm& gemm);
void AttentionGemmMixed(const AttentionGemm& gemm);

// For Bf16Kernel::kAvx512.
void AttentionAvx512Gemm(const AttentionGemm& gemm);

// For Bf16Kernel::kAmx; tiles are configured from Begin to End.
void AttentionAmxBegin();
void AttentionAmxEnd();
void AttentionAmxGemm(const AttentionGemm& gemm);

// The rest is for bf16 by either of these two.

// Of each row of scores [rows, n], n = 32 or 64, hidden ones being minus infinity: the maximum of
// scale * score, p = 2^(scale * score - maximum) and the sum of p. Rows that see nothing give minus
// infinity, 0 and 0. Buffers have rows up to the next multiple of 16; scores and p have rows of
// kAttentionKeyTile.
struct AttentionSoftmaxRows {
  const float* scores = nullptr;
  int64_t rows = 0, n = 0;
  float scale = 0;
  const bool* seen = nullptr;
  float *max = nullptr, *sum = nullptr;
  BF16* p = nullptr;
  float* wide_p = nullptr;  // not null: p goes here instead, unrounded
};
void AttentionSoftmaxBf16(const AttentionSoftmaxRows& args);

// to[r, i] = p[r, i] * scales[i], rows of kAttentionKeyTile, n = 32 or 64 of them.
struct AttentionScaleRows {
  const float *p = nullptr, *scales = nullptr;
  int64_t rows = 0, n = 0;
  BF16* to = nullptr;
};
void AttentionScaleBf16(const AttentionScaleRows& args);

// Of scores [keys, tile] and dp [keys, tile], lanes being queries: p = 2^(scale * score - lse), 0
// where hidden, ds = p * (dp - delta), and ds again with pairs of keys interleaved. keys is even.
inline constexpr int64_t kAttentionGradTile = 64;
struct AttentionGradScores {
  const float *scores = nullptr, *dp = nullptr, *lse = nullptr, *delta = nullptr;
  const int32_t *positions = nullptr, *key_positions = nullptr;  // of queries and keys
  int64_t keys = 0;
  float scale = 0;
  int window = 0;
  bool masked = false;
  BF16 *p = nullptr, *ds = nullptr, *ds_rows = nullptr;
};
void AttentionGradScoresBf16(const AttentionGradScores& args);

// 16 rows of n elements (null: zeros) become a panel [padded / 2][16][2]; padded % 32 == 0.
void AttentionPanelBf16(const BF16* const* rows, int64_t n, int64_t padded, BF16* to);
// Two rows (null: zeros) become [padded][2]; padded % 16 == 0.
void AttentionPairBf16(const BF16* even, const BF16* odd, int64_t n, int64_t padded, BF16* to);
// A panel [padded / 2][16][2] becomes 16 columns of rows of `stride` elements.
void AttentionTransposePanelBf16(const BF16* panel, int64_t padded, int64_t stride, BF16* to);
// Column r of `from` (rows of `stride`), times scale, goes to rows[r] [n] unless that is null.
void AttentionStoreTransposedBf16(const float* from, int64_t stride, float scale, int64_t n,
                                  BF16* const* rows);

// For A of `dtype`, and B of it or, with `pairs`, of bf16; `kernel` is for an A of bf16.
AttentionBackend AttentionBackendFor(DType dtype, bool pairs, Bf16Kernel kernel);

}  // namespace cadre::ops
