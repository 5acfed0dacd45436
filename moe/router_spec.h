// What a mixture layer's router is: plain data, resolved from a model's config.
#pragma once

#include <cstdint>

namespace cadre::moe {

enum class RouterKind : uint8_t {
  kSoftmaxTopK,      // softmax over all experts, the best top_k (mixtral, qwen, olmoe)
  kSelectedSoftmax,  // the best top_k logits, softmax over those (gpt_oss)
  kGrouped,          // softmax over all, the best groups by their maximum, then top_k (deepseek_v2)
  kSigmoidBias,      // sigmoid, chosen by score + bias in the best groups by the sum of their two
                     // best, weighted by the score alone (deepseek_v3)
};

struct RouterSpec {
  RouterKind kind = RouterKind::kSoftmaxTopK;
  int64_t experts = 0;
  int64_t top_k = 0;
  bool renormalize = false;  // the chosen weights are divided by their sum
  double scale = 1.0;        // and multiplied by this
  int64_t groups = 1;        // experts lie in this many groups of equal size,
  int64_t kept_groups = 1;   // of which this many are kept for a token
  bool logit_bias = false;   // the projection to logits has a bias
};

}  // namespace cadre::moe
