// Products with quantized matrices (core/quantized.h): bf16 activations, weights widened on the
// way.
//
// Order of arithmetic: codes (less `zero`) are exact in bf16; each group's products are one sum
// from zero in gemm.h's order, in fp32; groups are added left to right as total = fma(sum, scale,
// total), then total = fma(-min, sum of the row's activations in the group, total). So a row's bits
// do not depend on how many rows there are or on threads. Weights pass from memory as they are kept
// and are widened in registers. AMX machines use the AVX-512 kernel here, since tiles cannot scale
// a group's sum.
#pragma once

#include <vector>

#include "core/ops/gemm_panels.h"
#include "core/parameters.h"
#include "core/quantized.h"

namespace cadre::ops {

struct QuantGemmArgs {
  LeftMatrix a;                           // bf16 [M, K], not transposed
  const std::vector<QuantizedMatrix>& b;  // runs of rows; their sum is N
  Tensor c;                               // [M, N] f32 or bf16
  Tensor bias;                            // bf16 [N], or undefined
  Bf16Kernel kernel = MachineBf16Kernel();
};
void QuantGemm(Context& ctx, const QuantGemmArgs& args);

// c = a w^T (+ bias) where parameter `param` is quantized (matrix `expert` of a stack; -1: it is
// one matrix): true. Else nothing, and false. Other types than the kernel's multiply by the
// dequantized matrix, slowly: the yardstick. Panels of floats multiply as core/ops/gemm.h says.
struct QuantizedWeightArgs {
  ParamId param;
  int64_t expert = -1;
  Tensor a;
  Tensor c;
  Tensor bias;
};
bool QuantizedWeightGemm(Context& ctx, const QuantizedWeightArgs& args);

}  // namespace cadre::ops
