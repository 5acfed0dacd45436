// The CUDA kernels of rms_norm.h, on plain device pointers, so that nvcc reads none of the tensor
// headers. Asynchronous on `stream` (a cudaStream_t).
#pragma once

#include <cstdint>

#include "core/ops/cuda_dtype.h"

namespace cadre::ops {

struct RmsNormCudaForward {
  CudaDType dtype;  // of x, weight, y
  const void *x, *weight;
  float eps;
  void* y;
  float* rstd;  // [rows]
  int64_t rows, d;
  void* stream;
};
struct RmsNormCudaGrad {
  CudaDType dtype;  // of x, weight, dy, dx
  const void *x, *weight;
  const float* rstd;
  const void* dy;
  void* dx;   // written; may be null
  float* dw;  // added to; may be null
  int64_t rows, d;
  void* stream;
};
void RmsNormForwardCuda(const RmsNormCudaForward& args);
void RmsNormGradCuda(const RmsNormCudaGrad& args);

}  // namespace cadre::ops
