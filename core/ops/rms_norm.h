// Root mean square norm (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019):
//   y = x / sqrt(mean(x^2) + eps) * w
// over the last dimension. The mean is taken in fp32 (f64 on the reference path); as in the
// published models the normalized value is rounded to x's dtype before it is multiplied by w.
//
//   x [..., D], w [D] -> y [..., D] in x's dtype
#pragma once

#include "core/tape.h"

namespace cadre::ops {

struct RmsNormArgs {
  ParamId weight;
  float eps;
};

Var RmsNorm(Context& ctx, const Var& x, const RmsNormArgs& args);

// One implementation's kernels; rows R of D elements.
struct RmsNormForwardArgs {
  Tensor x;       // [R, D]
  Tensor weight;  // [D]
  double eps;
  Tensor y;     // [R, D]
  Tensor rstd;  // [R] fp32 (f64 for the reference), 1 / sqrt(mean + eps)
};
struct RmsNormGradArgs {
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
