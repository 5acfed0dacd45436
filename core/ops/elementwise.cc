#include "core/ops/elementwise.h"

#include "core/ops/elementwise_kernels.h"
#include "core/ops/kernel.h"

namespace cadre::ops {
namespace {

void AddInto(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y) {
  switch (KernelFor(a)) {
    case Kernel::kReference:
      return AddReference(ctx, a, b, y);
    case Kernel::kCpu:
      return AddCpu(ctx, a, b, y);
    case Kernel::kCuda:
      NoCudaKernel("add");
  }
}

Tensor Scaled(Context& ctx, const Tensor& x, float factor) {
  Tensor y = ctx.Empty(x.shape(), x.dtype());
  switch (KernelFor(x)) {
    case Kernel::kReference:
      ScaleReference(ctx, x, factor, y);
      break;
    case Kernel::kCpu:
      ScaleCpu(ctx, x, factor, y);
      break;
    case Kernel::kCuda:
      NoCudaKernel("scale");
  }
  return y;
}

// One side is f64: the reference path meets stored weights or inputs.
void ConvertThroughDouble(const Tensor& from, const Tensor& to) {
  VisitFloat(from.dtype(), [&](auto f) {
    VisitFloat(to.dtype(), [&](auto t) {
      const auto* source = from.data<decltype(f)>();
      auto* target = to.data<decltype(t)>();
      for (int64_t i = 0; i < from.numel(); ++i) {
        target[i] = static_cast<decltype(t)>(static_cast<double>(source[i]));
      }
    });
  });
}

}  // namespace

void ConvertInto(Context& ctx, const Tensor& from, const Tensor& to) {
  CADRE_CHECK(from.numel() == to.numel(), "{} into {}", from.shape().ToString(),
              to.shape().ToString());
  if (from.device().kind == DeviceKind::kCuda) NoCudaKernel("cast");
  if (from.dtype() == DType::kF64 || to.dtype() == DType::kF64)
    return ConvertThroughDouble(from, to);
  ConvertCpu(ctx, from, to);
}

Tensor CastTensor(Context& ctx, const Tensor& x, DType dtype) {
  if (x.dtype() == dtype) return x;
  Tensor y = ctx.Empty(x.shape(), dtype);
  ConvertInto(ctx, x, y);
  return y;
}

Var Add(Context& ctx, const Var& a, const Var& b) {
  CADRE_CHECK(a.value.shape() == b.value.shape() && a.value.dtype() == b.value.dtype(), "{} + {}",
              a.value.shape().ToString(), b.value.shape().ToString());
  Var y{ctx.Empty(a.value.shape(), a.value.dtype())};
  AddInto(ctx, a.value, b.value, y.value);
  if (ctx.tape == nullptr) return y;
  y.slot = ctx.tape->NewSlot();
  ctx.tape->Record({.name = "add",
                    .inputs = {a.slot, b.slot},
                    .outputs = {y.slot},
                    .input_grad = [as = a.slot, bs = b.slot, ys = y.slot](GradContext& g) {
                      g.AddGrad(as, g.OutputGrad(ys));
                      g.AddGrad(bs, g.OutputGrad(ys));
                    }});
  return y;
}

Var Scale(Context& ctx, const Var& x, float factor) {
  Var y{Scaled(ctx, x.value, factor)};
  if (ctx.tape == nullptr) return y;
  y.slot = ctx.tape->NewSlot();
  ctx.tape->Record({.name = "scale",
                    .inputs = {x.slot},
                    .outputs = {y.slot},
                    .input_grad = [xs = x.slot, ys = y.slot, factor](GradContext& g) {
                      g.AddGrad(xs, Scaled(g.ctx(), g.OutputGrad(ys), factor));
                    }});
  return y;
}

Var Cast(Context& ctx, const Var& x, DType dtype) {
  if (x.value.dtype() == dtype) return x;
  Var y{CastTensor(ctx, x.value, dtype)};
  if (ctx.tape == nullptr) return y;
  y.slot = ctx.tape->NewSlot();
  ctx.tape->Record(
      {.name = "cast",
       .inputs = {x.slot},
       .outputs = {y.slot},
       .input_grad = [xs = x.slot, ys = y.slot, from = x.value.dtype()](GradContext& g) {
         g.AddGrad(xs, CastTensor(g.ctx(), g.OutputGrad(ys), from));
       }});
  return y;
}

void Accumulate(Context& ctx, Tensor& into, const Tensor& add) {
  Tensor a = into;
  // Two owners are `into` and `a`.
  if (a.storage().use_count() > 2) into = ctx.Empty(a.shape(), a.dtype());
  AddInto(ctx, a, add.Reshape(a.shape()), into);
}

}  // namespace cadre::ops
