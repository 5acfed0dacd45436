#include "core/ops/rope.h"

#include "core/ops/kernel.h"

namespace cadre::ops {
namespace {

void Run(Context& ctx, const RopeKernelArgs& args) {
  switch (KernelFor(args.x)) {
    case Kernel::kReference:
      return RopeReference(ctx, args);
    case Kernel::kCpu:
      return RopeCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("rope");
  }
}

void Check(const Tensor& x, const RopeArgs& args) {
  CADRE_CHECK(x.shape().rank() == 3 && x.dim(0) == args.positions.numel(),
              "rope of {}, {} positions", x.shape().ToString(), args.positions.numel());
  CADRE_CHECK(args.offset >= 0 && args.offset + args.table->rotary_dim() <= x.dim(2),
              "{} rotary elements at {} of heads of {}", args.table->rotary_dim(), args.offset,
              x.dim(2));
  for (int32_t position : args.positions.span<int32_t>()) {
    CADRE_CHECK(position >= 0 && position < args.table->positions(),
                "position {}, the table has {}", position, args.table->positions());
  }
}

}  // namespace

Var Rope(Context& ctx, const Var& x, const RopeArgs& args) {
  Check(x.value, args);
  Var y{ctx.Empty(x.value.shape(), x.value.dtype())};
  Run(ctx, {x.value, args.positions, args.table, args.offset, false, y.value});
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  SlotId ps = ctx.tape->NewSlot();
  Node node{.name = "rope",
            .inputs = {x.slot},
            .outputs = {y.slot},
            .saved = {{ps, args.positions, Pass::kInput}}};
  node.input_grad = [ps, xs = x.slot, ys = y.slot, table = args.table, offset = args.offset,
                     shape = x.value.shape()](GradContext& g) {
    if (!g.Needs(xs)) return;
    Tensor dy = g.OutputGrad(ys).Reshape(shape), dx = g.ctx().Empty(shape, dy.dtype());
    Run(g.ctx(), {dy, g.Read(ps), table, offset, true, dx});
    g.AddGrad(xs, dx);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
