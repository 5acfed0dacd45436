#include "moe/dispatcher.h"

namespace cadre::moe {

Dispatched LocalDispatcher::Start(Context& ctx, const Var& x, const Routing& routing, int) const {
  Dispatched out = {.weights = routing.weights,
                    .plan = ops::PlanPermutation(ctx, routing.ids, experts_)};
  out.rows = ops::Permute(ctx, x, out.plan);
  out.offsets = out.plan.offsets;
  return out;
}

Var LocalDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                             int) const {
  return ops::Unpermute(ctx, rows, dispatched.weights, dispatched.plan);
}

std::shared_ptr<const Dispatcher> MakeDispatcher(int64_t experts, const ModelPart& part) {
  if (part.ep > 1) return std::make_shared<AllToAllDispatcher>(experts, part.ep);
  if (part.etp > 1) return std::make_shared<GatherDispatcher>(experts);
  return std::make_shared<LocalDispatcher>(experts);
}

}  // namespace cadre::moe
