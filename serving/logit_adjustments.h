// What a request changes in the logits before a token is drawn from them: logit_bias and penalties.
//
// As vLLM applies them, in this order:
//   logit_bias          logit += bias
//   repetition_penalty  of every token of the prompt or the generated text (CTRL,
//                       arXiv:1909.05858): logit > 0 ? logit / r : logit * r
//   frequency_penalty   of every generated token, as OpenAI documents it: logit -= f * count
//   presence_penalty    of every generated token: logit -= p
// Frequency and presence count generated tokens alone, repetition the prompt's, too. Pure functions
// of their arguments (a preempted request draws the same again); any thread.
#pragma once

#include <cstdint>
#include <span>

#include "serving/request.h"

namespace cadre {

// Whether `params` ask for anything of it.
bool AdjustsLogits(const SamplingParams& params);

// Ids outside [0, logits.size()) are ignored. NaN stays NaN.
void AdjustLogits(const SamplingParams& params, std::span<const int32_t> prompt,
                  std::span<const int32_t> generated, std::span<float> logits);

}  // namespace cadre
