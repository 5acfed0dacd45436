// Pointwise non-linearities, computed in fp32 and rounded once (f64 on the reference path).
#pragma once

#include "core/tape.h"

namespace cadre::ops {

// Gated linear unit with SiLU (Shazeer, "GLU Variants Improve Transformer", 2020):
//   y = (up + up_offset) * g * sigmoid(alpha * g),  g = min(gate, limit), up in [-limit, limit]
//   gate_up [..., 2 I], the gate first -> y [..., I]
struct SwiGluArgs {
  float alpha = 1.0f;
  float limit = 0.0f;  // 0: none
  float up_offset = 0.0f;

  static SwiGluArgs GptOss(float limit = 7.0f) { return {1.702f, limit, 1.0f}; }
};
Var SwiGlu(Context& ctx, const Var& gate_up, const SwiGluArgs& args = {});

// x * Phi(x), and its approximation x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).
// Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016.
enum class GeluForm : uint8_t { kErf, kTanh };
Var Gelu(Context& ctx, const Var& x, GeluForm form);

// x clamped to [-limit, limit]; the gradient is zero outside.
Var Clamp(Context& ctx, const Var& x, float limit);

// sigmoid(gate) * x, one gate a row: x [T, D], gate [T, 1] -> [T, D].
Var SigmoidGate(Context& ctx, const Var& x, const Var& gate);

}  // namespace cadre::ops
