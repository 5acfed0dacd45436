// Matrix products of activations with weights.
//
//   MatMul:        x [T, K], weight [N, K] -> y [T, N] = x w^T (+ bias [N])
//   GroupedMatMul: rows [R, K] sorted by expert, weight [E, N, K] -> [R, N]; the rows
//                  [offsets[e], offsets[e + 1]) meet expert e's matrix. Rows are never padded.
//
// A quantized weight (ParameterStore::quantized) has the product alone: a backward pass through it
// is a CHECK.
//
// Both follow gemm.h's (gemm_quant.h's) order of arithmetic: a row's bits depend on that row and
// the weights alone.
#pragma once

#include <vector>

#include "core/tape.h"

namespace cadre::ops {

struct MatMulArgs {
  ParamId weight;
  ParamId bias = kNoParam;
  // Computed and returned in fp32 whatever the compute dtype (routers): x and weight are converted.
  bool fp32 = false;
};
Var MatMul(Context& ctx, const Var& x, const MatMulArgs& args);

struct GroupedMatMulArgs {
  ParamId weight;
  ParamId bias = kNoParam;       // [E, N]
  std::vector<int32_t> offsets;  // [E + 1], host
};
Var GroupedMatMul(Context& ctx, const Var& rows, const GroupedMatMulArgs& args);

}  // namespace cadre::ops
