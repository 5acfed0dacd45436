// The best top_k logits, then softmax over those (gpt_oss): the same function as softmax over all,
// renormalized over the chosen.
#include "moe/gates.h"

namespace cadre::moe {

ops::Gate SelectedSoftmaxGate(Context& ctx, const Var& logits, const RouterSpec& spec,
                              const Tensor&) {
  return ops::TopKGate(ctx, logits, {.k = spec.top_k, .renormalize = true, .scaling = spec.scale});
}

}  // namespace cadre::moe
