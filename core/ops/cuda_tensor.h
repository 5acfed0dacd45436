// From tensors to what CUDA kernels take.
#pragma once

#include "core/ops/cuda_dtype.h"
#include "core/tensor.h"

namespace cadre::ops {

inline CudaDType CudaTypeOf(const Tensor& x) {
  switch (x.dtype()) {
    case DType::kF32:
      return CudaDType::kF32;
    case DType::kBF16:
      return CudaDType::kBF16;
    case DType::kF16:
      return CudaDType::kF16;
    default:
      CADRE_CHECK(false, "a CUDA kernel of dtype {}", static_cast<int>(x.dtype()));
  }
  __builtin_unreachable();
}

}  // namespace cadre::ops
