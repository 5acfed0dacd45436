// Softmax over all experts, then the best top_k (mixtral, qwen, olmoe).
#include "moe/gates.h"

namespace cadre::moe {

ops::Gate SoftmaxTopKGate(Context& ctx, const Var& logits, const RouterSpec& spec, const Tensor&) {
  return ops::TopKGate(ctx, logits,
                       {.k = spec.top_k, .renormalize = spec.renormalize, .scaling = spec.scale});
}

}  // namespace cadre::moe
