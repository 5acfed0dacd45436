#include "moe/moe_layer.h"

namespace cadre::moe {

MoeLayer::Output MoeLayer::Forward(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                                   const RouterLossOptions& losses) const {
  Output out;
  out.routing = router_.Route(ctx, x, offsets, losses);
  Dispatched dispatched = dispatcher_->Dispatch(ctx, x, out.routing);
  Var rows = experts_.Forward(ctx, dispatched.rows, dispatched.plan.offsets);
  out.y = dispatcher_->Combine(ctx, rows, out.routing, dispatched);
  return out;
}

}  // namespace cadre::moe
