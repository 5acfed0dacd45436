// Element types of CUDA kernels; free of other headers, since nvcc reads it.
#pragma once

#include <cstdint>

namespace cadre::ops {

enum class CudaDType : uint8_t { kF32, kBF16, kF16 };

}  // namespace cadre::ops
