#include "core/ops/rms_norm_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>

namespace cadre::ops {
namespace {

constexpr int kThreads = 256;

void CheckLaunch(const char* what) {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ float ToFloat(__half x) { return __half2float(x); }
template <typename T>
__device__ T FromFloat(float x);
template <>
__device__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __nv_bfloat16 FromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __half FromFloat<__half>(float x) {
  return __float2half_rn(x);
}

// The block's sum, in one order, in every thread.
__device__ float BlockSum(float value) {
  __shared__ float parts[kThreads];
  parts[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    __syncthreads();
  }
  return parts[0];
}

// One block a row.
template <typename T>
__global__ void ForwardRows(RmsNormCudaForward args) {
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(args.x) + row * args.d;
  const T* w = static_cast<const T*>(args.weight);
  T* y = static_cast<T*>(args.y) + row * args.d;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < args.d; i += kThreads) {
    const float v = ToFloat(x[i]);
    sum = fmaf(v, v, sum);
  }
  const float rstd = 1.0f / sqrtf(BlockSum(sum) / static_cast<float>(args.d) + args.eps);
  if (threadIdx.x == 0) args.rstd[row] = rstd;
  for (int64_t i = threadIdx.x; i < args.d; i += kThreads) {
    const float normalized = ToFloat(FromFloat<T>(ToFloat(x[i]) * rstd));
    y[i] = FromFloat<T>(normalized * ToFloat(w[i]));
  }
}

template <typename T>
__global__ void InputGradRows(RmsNormCudaGrad args) {
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(args.x) + row * args.d;
  const T* w = static_cast<const T*>(args.weight);
  const T* dy = static_cast<const T*>(args.dy) + row * args.d;
  T* dx = static_cast<T*>(args.dx) + row * args.d;
  const float rstd = args.rstd[row];
  float dot = 0;
  for (int64_t i = threadIdx.x; i < args.d; i += kThreads) {
    dot = fmaf(ToFloat(dy[i]) * ToFloat(w[i]), ToFloat(x[i]), dot);
  }
  const float back = -BlockSum(dot) * rstd * rstd * rstd / static_cast<float>(args.d);
  for (int64_t i = threadIdx.x; i < args.d; i += kThreads) {
    dx[i] = FromFloat<T>(fmaf(ToFloat(x[i]), back, ToFloat(dy[i]) * ToFloat(w[i]) * rstd));
  }
}

// One thread a column, over the rows in order.
template <typename T>
__global__ void WeightGradColumns(RmsNormCudaGrad args) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= args.d) return;
  float sum = args.dw[column];
  for (int64_t r = 0; r < args.rows; ++r) {
    const int64_t i = r * args.d + column;
    const float x = ToFloat(static_cast<const T*>(args.x)[i]);
    const float normalized = ToFloat(FromFloat<T>(x * args.rstd[r]));
    sum = fmaf(ToFloat(static_cast<const T*>(args.dy)[i]), normalized, sum);
  }
  args.dw[column] = sum;
}

template <typename T>
void Forward(const RmsNormCudaForward& args) {
  auto stream = static_cast<cudaStream_t>(args.stream);
  ForwardRows<T><<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
}

template <typename T>
void Grad(const RmsNormCudaGrad& args) {
  auto stream = static_cast<cudaStream_t>(args.stream);
  if (args.dx != nullptr) {
    InputGradRows<T><<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
  }
  if (args.dw != nullptr) {
    const int64_t blocks = (args.d + kThreads - 1) / kThreads;
    WeightGradColumns<T><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  }
}

}  // namespace

void RmsNormForwardCuda(const RmsNormCudaForward& args) {
  if (args.rows == 0) return;
  switch (args.dtype) {
    case CudaDType::kF32:
      Forward<float>(args);
      break;
    case CudaDType::kBF16:
      Forward<__nv_bfloat16>(args);
      break;
    case CudaDType::kF16:
      Forward<__half>(args);
      break;
  }
  CheckLaunch("rms_norm");
}

void RmsNormGradCuda(const RmsNormCudaGrad& args) {
  if (args.rows == 0) return;
  switch (args.dtype) {
    case CudaDType::kF32:
      Grad<float>(args);
      break;
    case CudaDType::kBF16:
      Grad<__nv_bfloat16>(args);
      break;
    case CudaDType::kF16:
      Grad<__half>(args);
      break;
  }
  CheckLaunch("rms_norm gradient");
}

}  // namespace cadre::ops
