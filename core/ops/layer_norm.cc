#include "core/ops/layer_norm.h"

#include <optional>

#include "core/ops/kernel.h"

namespace cadre::ops {
namespace {

Tensor Rows(const Tensor& x) { return x.Reshape({x.numel() / x.dim(-1), x.dim(-1)}); }

void Forward(Context& ctx, const LayerNormForwardArgs& args) {
  switch (KernelFor(args.x)) {
    case Kernel::kReference:
      return LayerNormForwardReference(ctx, args);
    case Kernel::kCpu:
      return LayerNormForwardCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("layer_norm");
  }
}

void Grad(Context& ctx, const LayerNormGradArgs& args) {
  switch (KernelFor(args.x)) {
    case Kernel::kReference:
      return LayerNormGradReference(ctx, args);
    case Kernel::kCpu:
      return LayerNormGradCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("layer_norm");
  }
}

struct Slots {
  SlotId x, mean, rstd, y;
};

void RecordWeightGrad(Context& ctx, const LayerNormArgs& args, const Slots& s, Node& node) {
  const bool weight = ctx.parameters->WantsGradient(args.weight);
  const bool bias = args.bias != kNoParam && ctx.parameters->WantsGradient(args.bias);
  if (weight) node.params.push_back(args.weight);
  if (bias) node.params.push_back(args.bias);
  if (!weight && !bias) return;
  node.weight_grad = [args, s, weight, bias](GradContext& g) {
    Tensor x = Rows(g.Read(s.x));
    LayerNormGradArgs grad{.x = x,
                           .mean = g.Read(s.mean),
                           .rstd = g.Read(s.rstd),
                           .dy = g.OutputGrad(s.y).Reshape(x.shape())};
    if (weight) grad.dw = g.ctx().parameters->Gradient(args.weight);
    if (bias) grad.db = g.ctx().parameters->Gradient(args.bias);
    Grad(g.ctx(), grad);
  };
}

}  // namespace

Var LayerNorm(Context& ctx, const Var& x, const LayerNormArgs& args) {
  Tensor rows = Rows(x.value);
  CADRE_CHECK(ctx.parameters->spec(args.weight).shape == Shape({rows.dim(1)}), "layer_norm of {}",
              x.value.shape().ToString());
  Var y{ctx.Empty(x.value.shape(), x.value.dtype())};
  const DType wide = rows.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
  Tensor mean = ctx.Empty({rows.dim(0)}, wide), rstd = ctx.Empty({rows.dim(0)}, wide);
  {
    LeasedWeight weight(ctx, args.weight, Lease::kForward);
    std::optional<LeasedWeight> bias;
    if (args.bias != kNoParam) bias.emplace(ctx, args.bias, Lease::kForward);
    Forward(ctx, {rows, weight.tensor(), bias ? bias->tensor() : Tensor(), args.eps, Rows(y.value),
                  mean, rstd});
  }
  if (ctx.tape == nullptr) return y;

  Tape& tape = *ctx.tape;
  y.slot = tape.NewSlot();
  Slots s{tape.SlotToSave(x), tape.NewSlot(), tape.NewSlot(), y.slot};
  Node node{.name = "layer_norm",
            .inputs = {x.slot},
            .outputs = {y.slot},
            .saved = {{s.x, x.value}, {s.mean, mean}, {s.rstd, rstd}}};
  node.input_grad = [s, in = x.slot, w = args.weight](GradContext& g) {
    if (!g.Needs(in)) return;
    LeasedWeight weight(g.ctx(), w, g.lease());
    Tensor x = Rows(g.Read(s.x)), dx = g.ctx().Empty(x.shape(), x.dtype());
    Grad(g.ctx(), {.x = x,
                   .weight = weight.tensor(),
                   .mean = g.Read(s.mean),
                   .rstd = g.Read(s.rstd),
                   .dy = g.OutputGrad(s.y).Reshape(x.shape()),
                   .dx = dx});
    g.AddGrad(in, dx);
  };
  RecordWeightGrad(ctx, args, s, node);
  tape.Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
