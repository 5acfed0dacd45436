#include "moe/moe_layer.h"

namespace cadre::moe {

MoeLayer::InFlight MoeLayer::Start(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                                   const RouterLossOptions& losses, int layer) const {
  InFlight flight{.routing = router_.Route(ctx, x, offsets, losses)};
  flight.dispatched = dispatcher_->Start(ctx, x, flight.routing, layer);
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
