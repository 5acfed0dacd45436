#include "moe/dispatcher.h"

namespace cadre::moe {

Dispatched ReplicatedDispatcher::Start(Context& ctx, const Var& x, const Routing& routing,
                                       int layer) const {
  const OpLabel label = {"experts", layer};
  const Routing shared = {.ids = routing.ids,
                          .weights = CopyTokens(ctx, routing.weights, ctx.groups->tp, label)};
  return local_.Start(ctx, CopyTokens(ctx, x, ctx.groups->tp, label), shared, layer);
}

PendingVar ReplicatedDispatcher::Combine(Context& ctx, const Var& rows,
                                         const Dispatched& dispatched, int layer) const {
  const Var partial = local_.Combine(ctx, rows, dispatched, layer).Wait(ctx);
  return StartExchange(ctx, partial, {TokenOp::kReduce, ctx.groups->tp, {"experts", layer}});
}

Dispatched SplitDispatcher::Start(Context& ctx, const Var& x, const Routing& routing,
                                  int layer) const {
  const OpLabel label = {"experts", layer};
  const Routing own = {.ids = SplitTokens(ctx, {routing.ids}, ctx.groups->tp, label).value,
                       .weights = SplitTokens(ctx, routing.weights, ctx.groups->tp, label),
                       .most_tokens = routing.most_tokens};
  Dispatched out = own_->Start(ctx, SplitTokens(ctx, x, ctx.groups->tp, label), own, layer);
  out.split = x.value.dim(0);
  return out;
}

PendingVar SplitDispatcher::Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                                    int layer) const {
  const Var own = own_->Combine(ctx, rows, dispatched, layer).Wait(ctx);
  Exchange join = {TokenOp::kJoin, ctx.groups->tp, {"experts", layer}};
  const int ranks = join.group->size();
  if (dispatched.split % ranks != 0) join.rows.receive = TokenRuns(dispatched.split, ranks);
  return StartExchange(ctx, own, std::move(join));
}

}  // namespace cadre::moe
