// Embedding: row ids[t] of a table for every token.
//
//   ids i32 [T], each in [0, V), or -1: a row of zeros, no gradient (a row that another rank
//   holds); weight [V, D] -> [T, D] in the weight's dtype (a
//                                                   quantized one's: the compute dtype)
//
// Ids out of range are a broken invariant: what comes from outside is checked where it enters. The
// weight gradient adds the rows of dy in token order, element by element, so it is the same at any
// thread count, and costs O(T D), not O(V D).
#pragma once

#include "core/tape.h"

namespace cadre::ops {

Var Embedding(Context& ctx, const Tensor& ids, ParamId weight);

struct EmbeddingGradArgs {
  Tensor ids;  // i32 [T]
  Tensor dy;   // [T, D]
  Tensor dw;   // [V, D] fp32 (f64), added to
};
void EmbeddingGradReference(Context& ctx, const EmbeddingGradArgs& args);
void EmbeddingGradCpu(Context& ctx, const EmbeddingGradArgs& args);

}  // namespace cadre::ops
