#include "core/ops/cuda_device.h"

#include <cuda_runtime.h>

namespace cadre::ops {

CudaDevices FindCudaDevices() {
  int count = 0;
  // Without a driver this returns an error (35) and leaves -1, so the code comes first.
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return {0, cudaGetErrorString(error)};
  if (count <= 0) return {0, "the driver reports no device"};
  return {count, ""};
}

}  // namespace cadre::ops
