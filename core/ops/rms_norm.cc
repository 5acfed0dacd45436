#include "core/ops/rms_norm.h"

#include "core/ops/cuda_tensor.h"
#include "core/ops/kernel.h"
#include "core/ops/rms_norm_cuda.h"

namespace cadre::ops {
namespace {

Tensor Rows(const Tensor& x) { return x.Reshape({x.numel() / x.dim(-1), x.dim(-1)}); }

void Forward(Context& ctx, const RmsNormForwardArgs& args) {
  switch (KernelFor(args.x)) {
    case Kernel::kReference:
      return RmsNormForwardReference(ctx, args);
    case Kernel::kCpu:
      return RmsNormForwardCpu(ctx, args);
    case Kernel::kCuda:
      CADRE_CHECK(!args.combine, "no CUDA kernel for a cut rms_norm");
      return RmsNormForwardCuda({.dtype = CudaTypeOf(args.x),
                                 .x = args.x.raw(),
                                 .weight = args.weight.raw(),
                                 .eps = static_cast<float>(args.eps),
                                 .y = args.y.raw(),
                                 .rstd = args.rstd.data<float>(),
                                 .rows = args.x.dim(0),
                                 .d = args.x.dim(1),
                                 .stream = ctx.stream});
  }
}

void Grad(Context& ctx, const RmsNormGradArgs& args) {
  switch (KernelFor(args.x)) {
    case Kernel::kReference:
      return RmsNormGradReference(ctx, args);
    case Kernel::kCpu:
      return RmsNormGradCpu(ctx, args);
    case Kernel::kCuda:
      CADRE_CHECK(!args.combine, "no CUDA kernel for a cut rms_norm");
      return RmsNormGradCuda({.dtype = CudaTypeOf(args.x),
                              .x = args.x.raw(),
                              .weight = args.weight.defined() ? args.weight.raw() : nullptr,
                              .rstd = args.rstd.data<float>(),
                              .dy = args.dy.raw(),
                              .dx = args.dx.defined() ? args.dx.raw() : nullptr,
                              .dw = args.dw.defined() ? args.dw.data<float>() : nullptr,
                              .rows = args.x.dim(0),
                              .d = args.x.dim(1),
                              .stream = ctx.stream});
  }
}

}  // namespace

Var RmsNorm(Context& ctx, const Var& x, const RmsNormArgs& args) {
  Tensor rows = Rows(x.value);
  CADRE_CHECK(ctx.parameters->spec(args.weight).shape == Shape({rows.dim(1)}), "rms_norm of {}",
              x.value.shape().ToString());
  Var y{ctx.Empty(x.value.shape(), x.value.dtype())};
  const int64_t width = args.width == 0 ? rows.dim(1) : args.width;
  Tensor rstd = ctx.Empty({rows.dim(0)}, rows.dtype() == DType::kF64 ? DType::kF64 : DType::kF32);
  {
    LeasedWeight weight(ctx, args.weight, Lease::kForward);
    Forward(ctx, {rows, weight.tensor(), args.eps, width, args.combine, Rows(y.value), rstd});
  }
  if (ctx.tape == nullptr) return y;

  Tape& tape = *ctx.tape;
  y.slot = tape.NewSlot();
  SlotId xs = tape.SlotToSave(x), rs = tape.NewSlot(), ys = y.slot;
  Node node{.name = "rms_norm",
            .inputs = {x.slot},
            .outputs = {y.slot},
            .saved = {{xs, x.value}, {rs, rstd}}};
  node.input_grad = [xs, rs, ys, in = x.slot, w = args.weight, width,
                     combine = args.combine](GradContext& g) {
    if (!g.Needs(in)) return;
    LeasedWeight weight(g.ctx(), w, g.lease());
    Tensor x = Rows(g.Read(xs));
    Tensor dx = g.ctx().Empty(x.shape(), x.dtype());
    Grad(g.ctx(), {width,
                   combine,
                   x,
                   weight.tensor(),
                   g.Read(rs),
                   g.OutputGrad(ys).Reshape(x.shape()),
                   dx,
                   {}});
    g.AddGrad(in, dx);
  };
  if (ctx.parameters->WantsGradient(args.weight)) {
    node.params = {args.weight};
    node.weight_grad = [xs, rs, ys, w = args.weight, width](GradContext& g) {
      Tensor x = Rows(g.Read(xs));
      Grad(g.ctx(), {width,
                     {},
                     x,
                     {},
                     g.Read(rs),
                     g.OutputGrad(ys).Reshape(x.shape()),
                     {},
                     g.ctx().parameters->Gradient(w)});
    };
  }
  tape.Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
