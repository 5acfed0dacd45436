#include "moe/dispatcher.h"

namespace cadre::moe {
namespace {

Communicator* Group(const Context& ctx) { return ctx.groups->etp; }

// Integers have no gradient.
Tensor GatherIds(Context& ctx, const Tensor& ids, const OpLabel& label) {
  Communicator* group = Group(ctx);
  Tensor all = ctx.Zeros({ids.dim(0) * group->size(), ids.dim(1)}, ids.dtype());
  const WorkPtr work = group->AllGather(ids, all, label);
  if (!Landed(ctx, *work, label)) {
    // Any ids that a router could have given.
    for (int64_t i = 0; i < all.numel(); ++i) {
      all.data<int32_t>()[i] = static_cast<int32_t>(i % all.dim(1));
    }
  }
  return all;
}

}  // namespace

Dispatched GatherDispatcher::Dispatch(Context& ctx, const Var& x, const Routing& routing,
                                      int layer) const {
  const OpLabel label = {"experts", layer};
  const Var all = GatherTokens(ctx, x, Group(ctx), label);
  Dispatched out = {
      .weights = GatherTokens(ctx, routing.weights, Group(ctx), label),
      .plan = ops::PlanPermutation(ctx, GatherIds(ctx, routing.ids, label), experts_)};
  out.rows = ops::Permute(ctx, all, out.plan);
  out.offsets = out.plan.offsets;
  return out;
}

Var GatherDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                              int layer) const {
  const Var partial = ops::Unpermute(ctx, rows, dispatched.weights, dispatched.plan);
  return ScatterTokens(ctx, partial, Group(ctx), {"experts", layer});
}

}  // namespace cadre::moe
