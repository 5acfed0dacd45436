// Root mean square norm (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019):
//   y = x / sqrt(mean(x^2) + eps) * w
// over the last dimension. The mean is taken in fp32 (f64 on the reference path); as in the
// published models the normalized value is rounded to x's dtype before it is multiplied by w.
//
//   x [..., D], w [D] -> y [..., D] in x's dtype
//
// Where each row is cut over ranks, x, w and y are this rank's columns: `width` is the whole row's,
// and combine sums [R] fp32 (f64) over the ranks, once per forward and once per gradient of x.
#pragma once

#include "core/ops/combine_ranks.h"
#include "core/tape.h"

namespace cadre::ops {

struct RmsNormArgs {
  ParamId weight;
  float eps;
  int64_t width = 0;  // 0: w's
  CombineRanks combine = {};
};

Var RmsNorm(Context& ctx, const Var& x, const RmsNormArgs& args);

// One implementation's kernels; rows R of D elements.
struct RmsNormForwardArgs {
  Tensor x;       // [R, D]
  Tensor weight;  // [D]
  double eps;
  int64_t width;                // elements of a whole row
  const CombineRanks& combine;  // of the sums of squares
  Tensor y;                     // [R, D]
  Tensor rstd;                  // [R] fp32 (f64 for the reference), 1 / sqrt(mean + eps)
};
struct RmsNormGradArgs {
  int64_t width;
  const CombineRanks& combine;  // of the dot products that dx needs
  Tensor x, weight, rstd;
  Tensor dy;  // [R, D]
  Tensor dx;  // [R, D], written; may be undefined
  Tensor dw;  // [D] fp32 (f64), added to; may be undefined
};
void RmsNormForwardReference(Context& ctx, const RmsNormForwardArgs& args);
void RmsNormGradReference(Context& ctx, const RmsNormGradArgs& args);
void RmsNormForwardCpu(Context& ctx, const RmsNormForwardArgs& args);
void RmsNormGradCpu(Context& ctx, const RmsNormGradArgs& args);

}  // namespace cadre::ops
