// Sampler: from one row of raw fp32 logits to a token and its logprobs.
//
// The logprobs are log-softmax of the raw logits whatever the temperature: the bits of the training
// forward. Sampling works on a copy, in the field's order: bias and penalties
// (logit_adjustments.h), temperature, top-k, top-p, min-p. A draw is
// Philox keyed by (seed, choice, position), so it does not depend on the batch, and a preempted or
// repeated request draws the same. Pure functions of their arguments; callable from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "serving/request.h"

namespace cadre {

struct SampleInput {
  std::span<const float> logits;  // [V]
  float lse = 0;                  // their log-sum-exp, as the loss computes it
  int64_t position = 0;           // of the token to sample, counted from the prompt's start
  // The tokens before it, for penalties.
  std::span<const int32_t> prompt = {}, generated = {};
  // Ids that may not be drawn (stop ids before min_tokens), ascending. Ignored where nothing would
  // be left.
  std::span<const int32_t> banned = {};
  // Bit i: token i may be drawn, at least one of the V. Empty: all may.
  std::span<const uint64_t> allowed = {};
};

// The token to continue with, an id of the V whatever the logits are: NaN is the least likely.
int32_t SampleToken(const SamplingParams& params, const SampleInput& input);

// The k most likely tokens, most likely first, ties by the lower id.
std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, float lse, int k);

// 1 for the most likely token, ties as above.
int RankOf(std::span<const float> logits, int32_t token);

}  // namespace cadre
