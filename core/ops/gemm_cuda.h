// The CUDA product behind gemm.h (cuBLASLt), on plain device pointers. Asynchronous on `stream`.
// cuBLASLt picks its algorithm by the shape, so a row's bits may depend on the number of rows here.
#pragma once

#include <cstdint>

#include "core/ops/cuda_dtype.h"

namespace cadre::ops {

struct GemmCudaArgs {
  CudaDType dtype;           // of a, b, bias
  CudaDType out_dtype;       // of c
  const void *a, *b, *bias;  // bias may be null
  void* c;
  int64_t m, n, k;
  bool transpose_a, transpose_b, accumulate;
  void* stream;
};
void GemmCuda(const GemmCudaArgs& args);

}  // namespace cadre::ops
