#include "moe/moe_layer.h"

namespace cadre::moe {

MoeLayer::Output MoeLayer::Forward(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                                   const RouterLossOptions& losses, int layer) const {
  Output out;
  out.routing = router_.Route(ctx, x, offsets, losses);
  const Dispatched dispatched = dispatcher_->Dispatch(ctx, x, out.routing, layer);
  Var rows = experts_.Forward(ctx, dispatched.rows, dispatched.offsets);
  out.y = dispatcher_->Combine(ctx, rows, dispatched, layer);
  return out;
}

}  // namespace cadre::moe
