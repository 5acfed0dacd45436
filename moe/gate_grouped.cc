// Softmax over all experts; the best groups by their best expert; the best top_k of those
// (DeepSeek V2, arXiv 2405.04434: device-limited routing).
#include "moe/gates.h"

namespace cadre::moe {

ops::Gate GroupedGate(Context& ctx, const Var& logits, const RouterSpec& spec, const Tensor&) {
  return ops::TopKGate(ctx, logits,
                       {.k = spec.top_k,
                        .renormalize = spec.renormalize,
                        .scaling = spec.scale,
                        .groups = spec.groups,
                        .kept_groups = spec.kept_groups});
}

}  // namespace cadre::moe
