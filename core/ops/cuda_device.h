// The CUDA devices of this machine, asked through the runtime library (libcuda is not linked).
// Callable from any thread, in every build.
#pragma once

#include <string>

namespace cadre::ops {

struct CudaDevices {
  int count = 0;
  std::string reason;  // why there is none; empty where there is one
};

// Never fails: no driver, no device and a build without CUDA all give a count of 0.
CudaDevices FindCudaDevices();

}  // namespace cadre::ops
