#include "moe/experts.h"

#include "core/ops/matmul.h"
#include "parallel/row_parallel.h"

namespace cadre::moe {

Var Experts::Forward(Context& ctx, const Var& rows, const std::vector<int32_t>& offsets) const {
  Var gate_up = ops::GroupedMatMul(
      ctx, rows, {.weight = params_.gate_up, .bias = params_.gate_up_bias, .offsets = offsets});
  Var inner = ops::SwiGlu(ctx, gate_up, activation_);
  Communicator* group = ctx.groups == nullptr ? nullptr : ctx.groups->etp;
  return ops::GroupedMatMul(ctx, inner,
                            {.weight = params_.down,
                             .bias = BiasOnce(ctx, params_.down_bias, group),
                             .offsets = offsets});
}

}  // namespace cadre::moe
