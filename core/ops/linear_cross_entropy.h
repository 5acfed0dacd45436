// The output projection and the loss of a language model, fused over chunks of tokens so that no
// more than a chunk of fp32 logits exists at a time.
//
//   logits = hidden w^T, fp32          hidden [T, D], w [V, D]
//   loss   = scale * sum over tokens with a target of
//              (-log_softmax(logits)[target] + z_coefficient * logsumexp(logits)^2)
//
// With a tape the gradients are computed while a chunk's logits are at hand (recomputing them in
// the backward pass would cost a third more of this layer's arithmetic): the hidden states' is kept
// in a slot, the weight's is added to the parameter's gradient during the forward and reported by
// the weight closure. So gradients must be zeroed before the forward, and the gradient that the
// loss will be seeded with has to be known: expected_gradient. The gradient of a chunk's logits is
// rounded to the compute dtype.
//
// Where the vocabulary is cut over ranks (VocabularyCut), all of them have the same hidden states
// and targets; each holds some of w's rows. Loss and logprobs are the whole row's on every rank;
// the gradient of hidden is this rank's part of a sum over the ranks.
//
// A token's logits and logprob have the bits that Logits and RowLogSumExp give for its row alone.
#pragma once

#include "core/ops/combine_ranks.h"
#include "core/tape.h"

namespace cadre::ops {

// hidden [N, D], weight [V, D] -> fp32 (f64) [N, V]; no gradient. A row's bits depend on that row.
Tensor Logits(Context& ctx, const Tensor& hidden, ParamId weight);

struct VocabularyCut {
  int64_t first = 0;          // the id of weight's first row
  int64_t vocabulary = 0;     // of all ranks; 0: weight's rows
  CombineRanks combine = {};  // as CrossEntropyRowsArgs says (softmax_rows.h)
};

struct LinearCrossEntropyArgs {
  ParamId weight = kNoParam;
  Tensor targets;      // i32 [T]; -1: no loss
  double scale = 1.0;  // 1 / the step's count of loss tokens
  double z_coefficient = 0.0;
  int64_t chunk_rows = 0;          // 0: 64 MiB of fp32 logits, 64 rows at least
  float expected_gradient = 1.0f;  // of the loss; anything else at the backward pass is a CHECK
  VocabularyCut cut = {};
};

struct LinearCrossEntropyResult {
  Var loss;                              // f64 [1]
  Tensor logprobs;                       // fp32 (f64) [T], 0 where there is no target
  double cross_entropy = 0, z_loss = 0;  // the loss's two terms, scaled
};

LinearCrossEntropyResult LinearCrossEntropy(Context& ctx, const Var& hidden,
                                            const LinearCrossEntropyArgs& args);

}  // namespace cadre::ops
