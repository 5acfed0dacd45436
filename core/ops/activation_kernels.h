// Kernels of activation.h. dx is written.
#pragma once

#include "core/context.h"
#include "core/ops/activation.h"

namespace cadre::ops {

void SwiGluReference(Context& ctx, const Tensor& x, const SwiGluArgs& args, const Tensor& y);
void SwiGluCpu(Context& ctx, const Tensor& x, const SwiGluArgs& args, const Tensor& y);
struct SwiGluGradArgs {
  Tensor x;   // [R, 2 I]
  Tensor dy;  // [R, I]
  Tensor dx;  // [R, 2 I]
  SwiGluArgs form;
};
void SwiGluGradReference(Context& ctx, const SwiGluGradArgs& args);
void SwiGluGradCpu(Context& ctx, const SwiGluGradArgs& args);

enum class Unary : uint8_t { kGeluErf, kGeluTanh, kClamp };
struct UnaryArgs {
  Unary kind;
  float limit = 0;  // kClamp
};
void UnaryReference(Context& ctx, const UnaryArgs& args, const Tensor& x, const Tensor& y);
void UnaryCpu(Context& ctx, const UnaryArgs& args, const Tensor& x, const Tensor& y);
struct UnaryGradArgs {
  UnaryArgs unary;
  Tensor x, dy, dx;
};
void UnaryGradReference(Context& ctx, const UnaryGradArgs& args);
void UnaryGradCpu(Context& ctx, const UnaryGradArgs& args);

struct SigmoidGateArgs {
  Tensor x;     // [R, D]
  Tensor gate;  // [R]
  Tensor y;     // [R, D]
};
struct SigmoidGateGradArgs {
  Tensor x, gate, dy;
  Tensor dx;     // [R, D]
  Tensor dgate;  // [R]
};
void SigmoidGateReference(Context& ctx, const SigmoidGateArgs& args);
void SigmoidGateCpu(Context& ctx, const SigmoidGateArgs& args);
void SigmoidGateGradReference(Context& ctx, const SigmoidGateGradArgs& args);
void SigmoidGateGradCpu(Context& ctx, const SigmoidGateGradArgs& args);

}  // namespace cadre::ops
