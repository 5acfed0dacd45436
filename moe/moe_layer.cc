#include "moe/moe_layer.h"

#include "moe/capacity.h"

namespace cadre::moe {

MoeLayer::InFlight MoeLayer::Start(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                                   const RouterOptions& options, int layer) const {
  InFlight flight{.routing = router_.Route(ctx, x, offsets, options)};
  Routing& routing = flight.routing;
  routing.most_tokens = options.most_tokens;
  if (options.capacity_factor == 0) {
    flight.dispatched = dispatcher_->Start(ctx, x, routing, layer);
    return flight;
  }
  const CappedIds capped =
      DropOverCapacity(ctx, routing.ids, router_.spec().experts, options.capacity_factor);
  routing.dropped = capped.dropped;
  const Routing kept = {
      .ids = capped.ids, .weights = routing.weights, .most_tokens = options.most_tokens};
  flight.dispatched = dispatcher_->Start(ctx, x, kept, layer);
  return flight;
}

MoeLayer::Output MoeLayer::Finish(Context& ctx, InFlight flight, int layer) const {
  Dispatched& dispatched = flight.dispatched;
  dispatcher_->Finish(ctx, dispatched, layer);
  const Var rows = experts_.Forward(ctx, dispatched.rows, dispatched.offsets);
  PendingVar y = dispatcher_->Combine(ctx, rows, dispatched, layer);
  return {.y = std::move(y), .routing = std::move(flight.routing)};
}

}  // namespace cadre::moe
