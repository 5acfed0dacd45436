#include "parallel/row_parallel.h"

namespace cadre {

ParamId BiasOnce(Context& ctx, ParamId bias, const Communicator* group) {
  if (bias == kNoParam || GroupRank(group) == 0) return bias;
  // Where weights are gathered for a lease, all that share them have to lease them.
  const LeasedWeight with_the_others(ctx, bias, Lease::kForward);
  if (ctx.tape != nullptr && ctx.parameters->WantsGradient(bias)) {
    ctx.tape->Record({.name = "bias of another rank", .params = {bias}});
  }
  return kNoParam;
}

}  // namespace cadre
