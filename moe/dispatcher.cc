#include "moe/dispatcher.h"

namespace cadre::moe {

Dispatched LocalDispatcher::Dispatch(Context& ctx, const Var& x, const Routing& routing) const {
  ops::PermutationPlan plan = ops::PlanPermutation(ctx, routing.ids, experts_);
  Var rows = ops::Permute(ctx, x, plan);
  return {std::move(rows), std::move(plan)};
}

Var LocalDispatcher::Combine(Context& ctx, const Var& rows, const Routing& routing,
                             const Dispatched& dispatched) const {
  return ops::Unpermute(ctx, rows, routing.weights, dispatched.plan);
}

}  // namespace cadre::moe
