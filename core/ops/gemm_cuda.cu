#include "core/ops/gemm_cuda.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace cadre::ops {
namespace {

[[noreturn]] void Fail(const char* what, const char* why) {
  std::fprintf(stderr, "cublasLt: %s: %s\n", what, why);
  std::abort();
}

void* OpenLibrary() {
  const std::string name = "libcublasLt.so." + std::to_string(CUBLAS_VER_MAJOR);
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    library = dlopen((CADRE_CUDA_LIBRARY_DIR "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) Fail(name.c_str(), dlerror());
  return library;
}

// Functions of the library loaded at run time; once opened it stays loaded.
class CublasLt {
 public:
  CublasLt() : library_(OpenLibrary()) {}

  template <typename Function, typename... Args>
  void Call(const char* name, Args... args) const {
    void* symbol = dlsym(library_, name);
    if (symbol == nullptr) Fail(name, dlerror());
    const cublasStatus_t status = reinterpret_cast<Function*>(symbol)(args...);
    if (status != CUBLAS_STATUS_SUCCESS) {
      Fail(name, ("status " + std::to_string(static_cast<int>(status))).c_str());
    }
  }

 private:
  void* library_;
};

cudaDataType_t TypeOf(CudaDType dtype) {
  switch (dtype) {
    case CudaDType::kF32:
      return CUDA_R_32F;
    case CudaDType::kBF16:
      return CUDA_R_16BF;
    case CudaDType::kF16:
      return CUDA_R_16F;
  }
  std::abort();
}

}  // namespace

// cuBLASLt's matrices are column-major, so row-major c = op(a) op(b) is its c^T = op(b)^T op(a)^T:
// b comes first, and what lies row-major reads as transposed.
void GemmCuda(const GemmCudaArgs& args) {
  if (args.m == 0 || args.n == 0) return;
  const CublasLt lt;
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t desc;
  lt.Call<decltype(cublasLtCreate)>("cublasLtCreate", &handle);
  lt.Call<decltype(cublasLtMatmulDescCreate)>("cublasLtMatmulDescCreate", &desc, CUBLAS_COMPUTE_32F,
                                              CUDA_R_32F);
  const cublasOperation_t first = args.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t second = args.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  auto set = [&](cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes) {
    lt.Call<decltype(cublasLtMatmulDescSetAttribute)>("cublasLtMatmulDescSetAttribute", desc,
                                                      attribute, value, bytes);
  };
  set(CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof(first));
  set(CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof(second));
  if (args.bias != nullptr) {
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType_t bias_type = TypeOf(args.dtype);
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue));
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &args.bias, sizeof(args.bias));
    set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof(bias_type));
  }

  cublasLtMatrixLayout_t a, b, c;
  const cudaDataType_t in = TypeOf(args.dtype), out = TypeOf(args.out_dtype);
  const uint64_t m = args.m, n = args.n, k = args.k;
  auto layout = [&](cublasLtMatrixLayout_t* to, cudaDataType_t type, uint64_t rows,
                    uint64_t columns) {
    lt.Call<decltype(cublasLtMatrixLayoutCreate)>("cublasLtMatrixLayoutCreate", to, type, rows,
                                                  columns, static_cast<int64_t>(rows));
  };
  layout(&b, in, args.transpose_b ? k : n, args.transpose_b ? n : k);
  layout(&a, in, args.transpose_a ? m : k, args.transpose_a ? k : m);
  layout(&c, out, n, m);
  const float alpha = 1.0f, beta = args.accumulate ? 1.0f : 0.0f;
  lt.Call<decltype(cublasLtMatmul)>("cublasLtMatmul", handle, desc, &alpha, args.b, b, args.a, a,
                                    &beta, args.c, c, args.c, c, nullptr, nullptr, size_t{0},
                                    static_cast<cudaStream_t>(args.stream));

  for (cublasLtMatrixLayout_t made : {a, b, c})
    lt.Call<decltype(cublasLtMatrixLayoutDestroy)>("cublasLtMatrixLayoutDestroy", made);
  lt.Call<decltype(cublasLtMatmulDescDestroy)>("cublasLtMatmulDescDestroy", desc);
  lt.Call<decltype(cublasLtDestroy)>("cublasLtDestroy", handle);
}

}  // namespace cadre::ops
