// The gate of a mixture of experts: scores -> the k experts of each token and their weights. One
// row's arithmetic is scalar and in one order, in fp32 (f64 on the reference path).
//
// The published routers as arguments:
//   mixtral            {}                                     softmax, top-k, renormalized
//   qwen, olmoe        {.renormalize = norm_topk_prob}
//   gpt_oss            {}            softmax over the selected logits is the same function
//   deepseek_v2        {.renormalize = false, .scaling = ..., .groups = ..., .kept_groups = ...}
//   deepseek_v3        {.score = kSigmoid, .group_score = kTopTwoSum, .scaling = ..., .groups =
//   ...,
//                       .kept_groups = ..., .correction = e_score_correction_bias}
#pragma once

#include <span>

#include "core/ops/combine_ranks.h"
#include "core/tape.h"

namespace cadre::ops {

enum class GateScore : uint8_t { kSoftmax, kSigmoid };
enum class GroupScore : uint8_t { kMax, kTopTwoSum };

struct TopKGateArgs {
  int64_t k = 1;
  GateScore score = GateScore::kSoftmax;
  bool renormalize = true;  // weights divided by their sum over the k
  double scaling = 1.0;     // multiplies the weights
  int64_t groups = 1;       // E / groups experts each, side by side; only experts of the
  int64_t kept_groups = 1;  // best kept_groups groups are chosen
  GroupScore group_score = GroupScore::kMax;
  Tensor correction;  // [E] fp32 (f64): added to the scores for choosing, not in the weights; or
                      // undefined
};

struct Gate {
  Tensor ids;   // i32 [T, k], ascending in each row, as the combine sums them
  Var weights;  // [T, k]
  Var probs;    // [T, E], each row adding up to 1 (sigmoid scores divided by their sum): for the
                // balance loss
};

// logits [T, E] fp32 (f64). Experts of equal score: the lower id is chosen. NaN is never chosen
// over a number.
Gate TopKGate(Context& ctx, const Var& logits, const TopKGateArgs& args);

// How often each expert was chosen in each segment of tokens [offsets[s], offsets[s + 1]):
// ids i32 [T, k] -> i32 [S, E].
Tensor ExpertCounts(Context& ctx, const Tensor& ids, std::span<const int32_t> offsets,
                    int64_t experts);

// The balance loss (Fedus et al., "Switch Transformers", 2021; per sequence as in DeepSeek V3):
//   coefficient * sum over segments s, experts e of f[s, e] * P[s, e]
//   f = E / (k L_s) * count of e in s,  P = mean of probs[., e] over the L_s tokens of s
// Segments are sequences, or the whole microbatch as one. Divide the coefficient by the step's
// count of segments; times k it is transformers' definition.
//
// Where a segment's tokens are spread over ranks, each has the offsets of its own tokens in all S
// segments, combine sums the counts, i32 [S, E], over the ranks, and a rank's loss is its tokens'
// share: the ranks' losses add up to the loss.
struct BalanceLossArgs {
  Tensor ids;                        // i32 [T, k]
  std::span<const int32_t> offsets;  // [S + 1], ascending from 0 to T
  double coefficient = 0.0;
  CombineRanks combine = {};
};
Var BalanceLoss(Context& ctx, const Var& probs, const BalanceLossArgs& args);  // f64 [1]

// coefficient * sum over tokens of logsumexp(logits)^2 (Zoph et al., "ST-MoE", 2022). f64 [1]
Var RouterZLoss(Context& ctx, const Var& logits, double coefficient);

}  // namespace cadre::ops
