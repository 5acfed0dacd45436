// Which implementation of an op runs: f64 is the reference path, end to end; else the device's.
#pragma once

#include "core/context.h"

namespace cadre::ops {

enum class Kernel : uint8_t { kReference, kCpu, kCuda };

inline Kernel KernelFor(const Tensor& x) {
  if (x.device().kind == DeviceKind::kCuda) return Kernel::kCuda;
  return x.dtype() == DType::kF64 ? Kernel::kReference : Kernel::kCpu;
}

// The CUDA slot of an op that has no CUDA kernel in this build.
[[noreturn]] void NoCudaKernel(const char* op);

}  // namespace cadre::ops
