#include "serving/logit_adjustments.h"

#include <vector>

namespace cadre {

bool AdjustsLogits(const SamplingParams& params) {
  return !params.logit_bias.empty() || params.repetition_penalty != 1 ||
         params.frequency_penalty != 0 || params.presence_penalty != 0;
}

void AdjustLogits(const SamplingParams& params, std::span<const int32_t> prompt,
                  std::span<const int32_t> generated, std::span<float> logits) {
  const auto vocab = static_cast<int32_t>(logits.size());
  for (const TokenBias& bias : params.logit_bias) {
    if (bias.token >= 0 && bias.token < vocab) logits[bias.token] += bias.bias;
  }
  std::vector<int32_t> counts(logits.size(), 0);  // -1: in the prompt alone
  for (int32_t token : prompt) {
    if (token >= 0 && token < vocab) counts[token] = -1;
  }
  for (int32_t token : generated) {
    if (token >= 0 && token < vocab) counts[token] = counts[token] < 0 ? 1 : counts[token] + 1;
  }
  for (int32_t token = 0; token < vocab; ++token) {
    if (counts[token] == 0) continue;
    float& logit = logits[token];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (counts[token] < 0) continue;
    logit -= params.frequency_penalty * static_cast<float>(counts[token]);
    logit -= params.presence_penalty;
  }
}

}  // namespace cadre
