// The router families, one file each: logits [T, E] fp32 -> chosen experts. Private to moe/.
#pragma once

#include "core/ops/topk_gate.h"
#include "moe/router_spec.h"

namespace cadre::moe {

// correction [E]: kSigmoidBias's, undefined elsewhere.
using GateFunction = ops::Gate (*)(Context& ctx, const Var& logits, const RouterSpec& spec,
                                   const Tensor& correction);

ops::Gate SoftmaxTopKGate(Context& ctx, const Var& logits, const RouterSpec& spec,
                          const Tensor& correction);
ops::Gate SelectedSoftmaxGate(Context& ctx, const Var& logits, const RouterSpec& spec,
                              const Tensor& correction);
ops::Gate GroupedGate(Context& ctx, const Var& logits, const RouterSpec& spec,
                      const Tensor& correction);
ops::Gate SigmoidBiasGate(Context& ctx, const Var& logits, const RouterSpec& spec,
                          const Tensor& correction);

GateFunction GateFor(RouterKind kind);

}  // namespace cadre::moe
