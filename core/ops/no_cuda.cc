// What *.cu files hold, in a build without the CUDA toolkit.
#include "core/ops/cuda_device.h"
#include "core/ops/gemm_cuda.h"
#include "core/ops/kernel.h"
#include "core/ops/rms_norm_cuda.h"

namespace cadre::ops {

CudaDevices FindCudaDevices() { return {0, "this build has no CUDA kernels"}; }

void RmsNormForwardCuda(const RmsNormCudaForward&) { NoCudaKernel("rms_norm"); }
void RmsNormGradCuda(const RmsNormCudaGrad&) { NoCudaKernel("rms_norm"); }
void GemmCuda(const GemmCudaArgs&) { NoCudaKernel("gemm"); }

}  // namespace cadre::ops
