// Matrix products on tensors, without a gradient.
//
// Order of arithmetic: every element of C is one sum over k in an order that k alone decides (pairs
// ascending, within a pair, or AMX's 32, as the instruction adds them), kept in fp32 from the first
// term to the last and rounded once. So a row of C has the same bits at any number of
// rows, any thread count, and with weights packed ahead or at the call. The libraries at hand do
// not promise this: oneDNN 2.6 changes its blocking over k with the number of rows and threads (10
// different results for one row at N = 2,048, K = 2,048), and its kernel below 256 outputs. Which
// kernel runs (Bf16Kernel) depends on the machine alone.
#pragma once

#include <map>
#include <tuple>

#include "core/context.h"
#include "core/ops/gemm_panels.h"
#include "core/parameters.h"

namespace cadre {

// Weights in panels (gemm_panels.h), made at first use and again when the parameters' version has
// moved on. Costs the bytes of the weights again, twice when training: once for each direction.
// One thread at a time.
class PackedWeights {
 public:
  enum class Direction : uint8_t { kForward, kInputGrad };  // a w^T, a w

  // The panels of matrix `expert` of parameter `id` (-1: the parameter is one matrix), whose rows
  // are `weight`.
  const ops::Panels& Get(Context& ctx, ParamId id, int64_t expert, Direction direction,
                         const Tensor& weight);
  size_t bytes() const;

 private:
  struct Entry {
    uint64_t version = 0;
    ops::Panels panels;
  };
  std::map<std::tuple<ParamId, int64_t, Direction>, Entry> entries_;
};

namespace ops {

// c[M, N] (+)= op(a) op(b) (+ bias). a and b have one dtype (f32, bf16 or f64); c has that or, for
// bf16, f32.
struct GemmArgs {
  Tensor a;  // [M, K], or [K, M] with transpose_a (weight gradients: K are tokens)
  Tensor b;  // [K, N], or [N, K] with transpose_b; never both transposed
  Tensor c;  // [M, N]
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // fp32 (f64) c only
  Tensor bias;              // [N] in b's dtype, or undefined
};
void Gemm(Context& ctx, const GemmArgs& args);

// c = a w^T (+ bias) (kForward, c [M, rows of w]) or a w (kInputGrad, c [M, columns of w]) for a
// parameter's matrix w, or matrix `expert` of a stack, through ctx.packed where it is set.
struct WeightGemmArgs {
  ParamId param;
  int64_t expert = -1;  // -1: the parameter is one matrix
  Tensor weight;        // [N, K], the leased matrix
  PackedWeights::Direction direction = PackedWeights::Direction::kForward;
  Tensor a;
  Tensor c;
  Tensor bias;
};
void WeightGemm(Context& ctx, const WeightGemmArgs& args);

// sums[n] += sum over rows of x[T, N], row after row; sums in fp32 (f64).
void AddColumnSums(Context& ctx, const Tensor& x, const Tensor& sums);

}  // namespace ops
}  // namespace cadre
