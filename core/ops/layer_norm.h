// Layer norm (Ba, Kiros & Hinton, 2016): y = (x - mean) / sqrt(variance + eps) * w (+ b) over the
// last dimension, statistics in fp32 (f64 on the reference path).
//
//   x [..., D], w [D], b [D] or none -> y [..., D] in x's dtype
#pragma once

#include "core/tape.h"

namespace cadre::ops {

struct LayerNormArgs {
  ParamId weight;
  ParamId bias = kNoParam;
  float eps = 1e-5f;
};

Var LayerNorm(Context& ctx, const Var& x, const LayerNormArgs& args);

// Kernels; rows R of D elements.
struct LayerNormForwardArgs {
  Tensor x, weight;
  Tensor bias;  // may be undefined
  double eps;
  Tensor y;
  Tensor mean, rstd;  // [R] fp32 (f64), written
};
struct LayerNormGradArgs {
  Tensor x, weight, mean, rstd, dy;
  Tensor dx;      // [R, D], written; may be undefined
  Tensor dw, db;  // [D] fp32 (f64), added to; may be undefined
};
void LayerNormForwardReference(Context& ctx, const LayerNormForwardArgs& args);
void LayerNormGradReference(Context& ctx, const LayerNormGradArgs& args);
void LayerNormForwardCpu(Context& ctx, const LayerNormForwardArgs& args);
void LayerNormGradCpu(Context& ctx, const LayerNormGradArgs& args);

}  // namespace cadre::ops
