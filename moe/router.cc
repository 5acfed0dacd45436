#include "moe/router.h"

#include <optional>

#include "core/ops/matmul.h"
#include "moe/gates.h"
#include "parallel/combine_ranks.h"

namespace cadre::moe {

GateFunction GateFor(RouterKind kind) {
  switch (kind) {
    case RouterKind::kSoftmaxTopK:
      return SoftmaxTopKGate;
    case RouterKind::kSelectedSoftmax:
      return SelectedSoftmaxGate;
    case RouterKind::kGrouped:
      return GroupedGate;
    case RouterKind::kSigmoidBias:
      return SigmoidBiasGate;
  }
  CADRE_CHECK(false, "router kind {}", static_cast<int>(kind));
  __builtin_unreachable();
}

Routing Router::Route(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                      const RouterOptions& options) const {
  Var logits = ops::MatMul(ctx, x, {.weight = params_.weight, .bias = params_.bias, .fp32 = true});
  std::optional<LeasedWeight> correction;
  if (params_.correction != kNoParam) {
    correction.emplace(ctx, params_.correction, Lease::kForward);
  }
  ops::Gate gate =
      GateFor(spec_.kind)(ctx, logits, spec_, correction ? correction->tensor() : Tensor());
  Routing routing{.ids = gate.ids, .weights = gate.weights, .logits = logits.value};
  if (options.balance != 0.0) {
    int32_t tokens = static_cast<int32_t>(x.value.dim(0));
    std::vector<int32_t> whole = {0, tokens};
    routing.losses.push_back(ops::BalanceLoss(
        ctx, gate.probs,
        {.ids = gate.ids,
         .offsets = options.per_sequence ? offsets : std::span<const int32_t>(whole),
         .coefficient = options.balance,
         .combine = SumOver(ctx.groups == nullptr ? nullptr : ctx.groups->sequence, {"balance"})}));
  }
  if (options.z != 0.0) routing.losses.push_back(ops::RouterZLoss(ctx, logits, options.z));
  return routing;
}

}  // namespace cadre::moe
