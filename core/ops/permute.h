// Tokens to experts and back: rows sorted by expert for the grouped product, never padded, and the
// combine, which sums a token's experts in ascending id in fp32 (f64).
//
//   PermutationPlan plan = PlanPermutation(ctx, ids, E);       // ids i32 [T, k], ascending rows
//   Var rows = Permute(ctx, x, plan);                          // [T, D] -> [T k, D]
//   ... rows [plan.offsets[e], plan.offsets[e + 1]) are expert e's, in token order ...
//   Var y = Unpermute(ctx, rows, weights, plan);               // y[t] = sum_j w[t, j] row(t, j)
//
// A choice may be kDropped: it becomes no row, adds nothing to y and gives its weight no gradient.
#pragma once

#include <vector>

#include "core/tape.h"

namespace cadre::ops {

inline constexpr int32_t kDropped = -1;

// R rows, T k of them unless choices are dropped.
struct PermutationPlan {
  std::vector<int32_t> offsets;  // [E + 1]
  Tensor row_of;                 // i32 [T, k]: the row that choice j of token t became, or kDropped
  Tensor token_of;               // i32 [R]: the token of each row
};

// ids: each in [0, experts) or kDropped, the others strictly ascending in a row (as TopKGate gives
// them).
PermutationPlan PlanPermutation(Context& ctx, const Tensor& ids, int64_t experts);

Var Permute(Context& ctx, const Var& x, const PermutationPlan& plan);
// weights [T, k] fp32 (f64); rows [R, D] -> [T, D] in rows' dtype.
Var Unpermute(Context& ctx, const Var& rows, const Var& weights, const PermutationPlan& plan);

// y[t] = sum over j, ascending, of weights[t, j] * rows[row_of[t, j]].
struct CombineArgs {
  Tensor rows;     // [R, D]
  Tensor weights;  // [T, k]; undefined: all one
  Tensor row_of;   // i32 [T, k]
  Tensor y;        // [T, D]
};
struct CombineGradArgs {
  Tensor rows, weights, row_of;
  Tensor dy;        // [T, D]
  Tensor drows;     // [R, D], written
  Tensor dweights;  // [T, k], written
};
void CombineReference(Context& ctx, const CombineArgs& args);
void CombineCpu(Context& ctx, const CombineArgs& args);
void CombineGradReference(Context& ctx, const CombineGradArgs& args);
void CombineGradCpu(Context& ctx, const CombineGradArgs& args);

}  // namespace cadre::ops
