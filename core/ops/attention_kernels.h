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
};

// A kernel and what must run around its use on each thread. `bf16`: A is bf16 and B holds pairs.
struct AttentionBackend {
  bool bf16 = false;
  void (*gemm)(const AttentionGemm&) = nullptr;
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
};

// For operands in fp32, and for an fp32 A with a B of bf16 pairs; any machine.
void AttentionGemmF32(const AttentionGemm& gemm);
void AttentionGemmMixed(const AttentionGemm& gemm);

// Where AmxAvailable() (gemm_kernels.h); tiles are configured from Begin to End.
void AttentionAmxBegin();
void AttentionAmxEnd();
void AttentionAmxGemm(const AttentionGemm& gemm);

// For tensors of `dtype`; the machine alone decides.
AttentionBackend AttentionBackendFor(DType dtype);

// 64-byte aligned parts of one buffer.
class AttentionScratch {
 public:
  explicit AttentionScratch(std::byte* base) : at_(base) {}
  template <typename T>
  T* Take(int64_t count) {
    std::byte* here = at_;
    at_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(here);
  }
  const std::byte* end() const { return at_; }

 private:
  std::byte* at_;
};

}  // namespace cadre::ops
