// Sigmoid scores; chosen by score + correction in the groups with the best sum of two, weighted by
// the score alone (DeepSeek V3, arXiv 2412.19437: auxiliary-loss-free balance).
#include "moe/gates.h"

namespace cadre::moe {

ops::Gate SigmoidBiasGate(Context& ctx, const Var& logits, const RouterSpec& spec,
                          const Tensor& correction) {
  return ops::TopKGate(ctx, logits,
                       {.k = spec.top_k,
                        .score = ops::GateScore::kSigmoid,
                        .renormalize = spec.renormalize,
                        .scaling = spec.scale,
                        .groups = spec.groups,
                        .kept_groups = spec.kept_groups,
                        .group_score = ops::GroupScore::kTopTwoSum,
                        .correction = correction});
}

}  // namespace cadre::moe
