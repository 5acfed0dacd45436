#include "moe/experts.h"

#include "core/ops/matmul.h"

namespace cadre::moe {

Var Experts::Forward(Context& ctx, const Var& rows, const std::vector<int32_t>& offsets) const {
  Var gate_up = ops::GroupedMatMul(
      ctx, rows, {.weight = params_.gate_up, .bias = params_.gate_up_bias, .offsets = offsets});
  Var inner = ops::SwiGlu(ctx, gate_up, activation_);
  return ops::GroupedMatMul(
      ctx, inner, {.weight = params_.down, .bias = params_.down_bias, .offsets = offsets});
}

}  // namespace cadre::moe
