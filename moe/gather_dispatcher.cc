#include "moe/dispatcher.h"

namespace cadre::moe {
namespace {

PendingVar StartGather(Context& ctx, const Var& x, const OpLabel& label) {
  return StartExchange(ctx, x, {TokenOp::kGather, ctx.groups->etp, label});
}

// The ids that came, or after a failure any that a router could have given.
Tensor Ids(Context& ctx, PendingVar& coming) {
  Tensor ids = coming.Wait(ctx).value;
  if (ctx.groups->failure.ok()) return ids;
  for (int64_t i = 0; i < ids.numel(); ++i) {
    ids.data<int32_t>()[i] = static_cast<int32_t>(i % ids.dim(1));
  }
  return ids;
}

}  // namespace

Dispatched GatherDispatcher::Start(Context& ctx, const Var& x, const Routing& routing,
                                   int layer) const {
  const OpLabel label = {"experts", layer};
  return {.tokens_coming = StartGather(ctx, x, label),
          .ids_coming = StartGather(ctx, {routing.ids}, label),
          .weights_coming = StartGather(ctx, routing.weights, label)};
}

void GatherDispatcher::Finish(Context& ctx, Dispatched& dispatched, int) const {
  const Var all = dispatched.tokens_coming.Wait(ctx);
  dispatched.weights = dispatched.weights_coming.Wait(ctx);
  dispatched.plan = ops::PlanPermutation(ctx, Ids(ctx, dispatched.ids_coming), experts_);
  dispatched.rows = ops::Permute(ctx, all, dispatched.plan);
  dispatched.offsets = dispatched.plan.offsets;
}

PendingVar GatherDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                                     int layer) const {
  const Var partial = ops::Unpermute(ctx, rows, dispatched.weights, dispatched.plan);
  return StartExchange(ctx, partial, {TokenOp::kScatter, ctx.groups->etp, {"experts", layer}});
}

}  // namespace cadre::moe
