#include "moe/dispatcher.h"

namespace cadre::moe {

Dispatched LocalDispatcher::Start(Context& ctx, const Var& x, const Routing& routing, int) const {
  Dispatched out = {.weights = routing.weights,
                    .plan = ops::PlanPermutation(ctx, routing.ids, experts_)};
  out.rows = ops::Permute(ctx, x, out.plan);
  out.offsets = out.plan.offsets;
  return out;
}

PendingVar LocalDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                                    int) const {
  return StartExchange(ctx, ops::Unpermute(ctx, rows, dispatched.weights, dispatched.plan), {});
}

namespace {

std::shared_ptr<const Dispatcher> ForOwnTokens(int64_t experts, const ModelPart& part) {
  if (part.ep > 1) return std::make_shared<AllToAllDispatcher>(experts, part.ep);
  if (part.etp > 1) return std::make_shared<GatherDispatcher>(experts);
  return std::make_shared<LocalDispatcher>(experts);
}

}  // namespace

std::shared_ptr<const Dispatcher> MakeDispatcher(int64_t experts, const ModelPart& part) {
  if (!part.replicated_tokens()) return ForOwnTokens(experts, part);
  if (part.ep == 1 && part.etp == part.tp) return std::make_shared<ReplicatedDispatcher>(experts);
  return std::make_shared<SplitDispatcher>(ForOwnTokens(experts, part));
}

}  // namespace cadre::moe
