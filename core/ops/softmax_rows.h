// Log-softmax of rows of raw logits, the one order of arithmetic that training and serving share: a
// row's result depends on that row alone. A token's logprob is logits[token] - RowLogSumExp(row).
//
// Source of the loss's gradient: softmax minus one-hot; the z-loss (Chowdhery et al., "PaLM", 2022)
// adds coefficient * logsumexp^2.
#pragma once

#include <span>

#include "core/ops/combine_ranks.h"

namespace cadre::ops {

// May be called from any thread.
float RowLogSumExp(std::span<const float> logits);
double RowLogSumExp(std::span<const double> logits);
// out[v] = logits[v] - log_sum_exp; in place is fine.
void LogSoftmaxRow(std::span<const float> logits, float log_sum_exp, std::span<float> out);

// Rows of a chunk; where dlogits is defined, `logits` is used up.
//
// Where the vocabulary is cut over ranks, the columns are ids [first, first + V), and combine
// completes [3, R]: of each row the columns' maximum m, the sum of exp(logit - m), and the target's
// logit, 0 where it is not among them.
struct CrossEntropyRowsArgs {
  Tensor logits;   // [R, V] fp32 (f64)
  Tensor targets;  // i32 [R], ids; -1: no loss
  double scale;
  double z_coefficient;
  Tensor log_sum_exp;  // [R], written
  Tensor logprobs;     // [R], written; 0 where there is no target
  Tensor dlogits;      // [R, V] f32, bf16, f16 (f64), written; may be undefined
  int64_t first = 0;
  CombineRanks combine = {};
};

// The column of row r's target, -1 where it has none here.
inline int64_t TargetColumn(const CrossEntropyRowsArgs& args, int64_t r) {
  const int64_t column = args.targets.data<int32_t>()[r] - args.first;
  return column >= 0 && column < args.logits.dim(1) ? column : -1;
}

void CrossEntropyRowsReference(Context& ctx, const CrossEntropyRowsArgs& args);
void CrossEntropyRowsCpu(Context& ctx, const CrossEntropyRowsArgs& args);

}  // namespace cadre::ops
