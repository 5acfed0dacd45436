#include "core/ops/activation.h"

#include "core/ops/activation_kernels.h"
#include "core/ops/kernel.h"

namespace cadre::ops {
namespace {

Tensor Rows(const Tensor& x) { return x.Reshape({x.numel() / x.dim(-1), x.dim(-1)}); }

// Runs the implementation that x's device and dtype ask for.
template <typename Reference, typename Cpu>
void Dispatch(const char* name, const Tensor& x, const Reference& reference, const Cpu& cpu) {
  switch (KernelFor(x)) {
    case Kernel::kReference:
      return reference();
    case Kernel::kCpu:
      return cpu();
    case Kernel::kCuda:
      NoCudaKernel(name);
  }
}

Var UnaryOp(Context& ctx, const char* name, const Var& x, const UnaryArgs& args) {
  Var y{ctx.Empty(x.value.shape(), x.value.dtype())};
  Dispatch(
      name, x.value, [&] { UnaryReference(ctx, args, x.value, y.value); },
      [&] { UnaryCpu(ctx, args, x.value, y.value); });
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  SlotId xs = ctx.tape->SlotToSave(x);
  Node node{.name = name,
            .inputs = {x.slot},
            .outputs = {y.slot},
            .saved = {{xs, x.value, Pass::kInput}}};
  node.input_grad = [name, args, xs, in = x.slot, ys = y.slot](GradContext& g) {
    if (!g.Needs(in)) return;
    Tensor x = g.Read(xs), dx = g.ctx().Empty(x.shape(), x.dtype());
    UnaryGradArgs grad{args, x, g.OutputGrad(ys), dx};
    Dispatch(
        name, x, [&] { UnaryGradReference(g.ctx(), grad); }, [&] { UnaryGradCpu(g.ctx(), grad); });
    g.AddGrad(in, dx);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

Shape HalfLast(const Shape& shape) {
  std::vector<int64_t> dims(shape.dims().begin(), shape.dims().end());
  dims.back() /= 2;
  return Shape(std::span<const int64_t>(dims));
}

}  // namespace

Var SwiGlu(Context& ctx, const Var& gate_up, const SwiGluArgs& args) {
  CADRE_CHECK(gate_up.value.dim(-1) % 2 == 0, "swiglu of {}", gate_up.value.shape().ToString());
  Var y{ctx.Empty(HalfLast(gate_up.value.shape()), gate_up.value.dtype())};
  Tensor x = Rows(gate_up.value);
  Dispatch(
      "swiglu", x, [&] { SwiGluReference(ctx, x, args, y.value); },
      [&] { SwiGluCpu(ctx, x, args, y.value); });
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  SlotId xs = ctx.tape->SlotToSave(gate_up);
  Node node{.name = "swiglu",
            .inputs = {gate_up.slot},
            .outputs = {y.slot},
            .saved = {{xs, gate_up.value, Pass::kInput}}};
  node.input_grad = [args, xs, in = gate_up.slot, ys = y.slot](GradContext& g) {
    if (!g.Needs(in)) return;
    Tensor x = Rows(g.Read(xs)), dx = g.ctx().Empty(x.shape(), x.dtype());
    SwiGluGradArgs grad{x, g.OutputGrad(ys), dx, args};
    Dispatch(
        "swiglu", x, [&] { SwiGluGradReference(g.ctx(), grad); },
        [&] { SwiGluGradCpu(g.ctx(), grad); });
    g.AddGrad(in, dx);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

Var Gelu(Context& ctx, const Var& x, GeluForm form) {
  return UnaryOp(ctx, "gelu", x, {form == GeluForm::kErf ? Unary::kGeluErf : Unary::kGeluTanh});
}

Var Clamp(Context& ctx, const Var& x, float limit) {
  CADRE_CHECK(limit > 0, "clamp to {}", limit);
  return UnaryOp(ctx, "clamp", x, {Unary::kClamp, limit});
}

Var SigmoidGate(Context& ctx, const Var& x, const Var& gate) {
  const Tensor& value = x.value;
  CADRE_CHECK(
      gate.value.numel() * value.dim(-1) == value.numel() && gate.value.dtype() == value.dtype(),
      "gate {} of {}", gate.value.shape().ToString(), value.shape().ToString());
  Var y{ctx.Empty(value.shape(), value.dtype())};
  SigmoidGateArgs args{Rows(value), gate.value, y.value};
  Dispatch(
      "sigmoid_gate", value, [&] { SigmoidGateReference(ctx, args); },
      [&] { SigmoidGateCpu(ctx, args); });
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  SlotId xs = ctx.tape->SlotToSave(x), gs = ctx.tape->SlotToSave(gate);
  Node node{.name = "sigmoid_gate",
            .inputs = {x.slot, gate.slot},
            .outputs = {y.slot},
            .saved = {{xs, value, Pass::kInput}, {gs, gate.value, Pass::kInput}}};
  node.input_grad = [xs, gs, x_in = x.slot, g_in = gate.slot, ys = y.slot](GradContext& g) {
    Tensor x = Rows(g.Read(xs)), gate = g.Read(gs);
    SigmoidGateGradArgs grad{x, gate, g.OutputGrad(ys), g.ctx().Empty(x.shape(), x.dtype()),
                             g.ctx().Empty(gate.shape(), gate.dtype())};
    Dispatch(
        "sigmoid_gate", x, [&] { SigmoidGateGradReference(g.ctx(), grad); },
        [&] { SigmoidGateGradCpu(g.ctx(), grad); });
    g.AddGrad(x_in, grad.dx);
    g.AddGrad(g_in, grad.dgate);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
