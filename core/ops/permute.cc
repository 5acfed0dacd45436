#include "core/ops/permute.h"

#include <cstring>

#include "core/ops/kernel.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

void Combine(Context& ctx, const CombineArgs& args) {
  switch (KernelFor(args.rows)) {
    case Kernel::kReference:
      return CombineReference(ctx, args);
    case Kernel::kCpu:
      return CombineCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("unpermute");
  }
}

void CombineGrad(Context& ctx, const CombineGradArgs& args) {
  switch (KernelFor(args.rows)) {
    case Kernel::kReference:
      return CombineGradReference(ctx, args);
    case Kernel::kCpu:
      return CombineGradCpu(ctx, args);
    case Kernel::kCuda:
      NoCudaKernel("unpermute");
  }
}

void CheckIds(const Tensor& ids, int64_t experts) {
  const int64_t k = ids.dim(1);
  const int32_t* id = ids.data<int32_t>();
  int32_t last = kDropped;  // of the token's experts so far
  for (int64_t i = 0; i < ids.numel(); ++i) {
    if (i % k == 0) last = kDropped;
    if (id[i] == kDropped) continue;
    CADRE_CHECK(id[i] >= 0 && id[i] < experts, "expert {} of {}", id[i], experts);
    CADRE_CHECK(last < id[i], "experts {} and {} of token {}", last, id[i], i / k);
    last = id[i];
  }
}

}  // namespace

PermutationPlan PlanPermutation(Context& ctx, const Tensor& ids, int64_t experts) {
  CheckIds(ids, experts);
  const int64_t slots = ids.numel(), k = ids.dim(1);
  const int32_t* id = ids.data<int32_t>();
  PermutationPlan plan{.offsets = std::vector<int32_t>(static_cast<size_t>(experts) + 1, 0),
                       .row_of = ctx.Empty(ids.shape(), DType::kI32)};
  for (int64_t i = 0; i < slots; ++i) {
    if (id[i] != kDropped) ++plan.offsets[id[i] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) plan.offsets[e + 1] += plan.offsets[e];
  plan.token_of = ctx.Empty({plan.offsets.back()}, DType::kI32);
  std::vector<int32_t> next(plan.offsets.begin(), plan.offsets.end() - 1);
  for (int64_t i = 0; i < slots; ++i) {
    const int32_t row = id[i] == kDropped ? kDropped : next[id[i]]++;
    plan.row_of.data<int32_t>()[i] = row;
    if (row == kDropped) continue;
    plan.token_of.data<int32_t>()[row] = static_cast<int32_t>(i / k);
  }
  return plan;
}

Var Permute(Context& ctx, const Var& x, const PermutationPlan& plan) {
  const Tensor& value = x.value;
  if (value.device().kind == DeviceKind::kCuda) NoCudaKernel("permute");
  const int64_t slots = plan.token_of.numel(), d = value.dim(1);
  CADRE_CHECK(value.dim(0) == plan.row_of.dim(0), "permute {} by a plan of {} tokens",
              value.shape().ToString(), plan.row_of.dim(0));
  Var y{ctx.Empty({slots, d}, value.dtype())};
  const size_t bytes = static_cast<size_t>(d) * SizeOf(value.dtype());
  const int32_t* token = plan.token_of.data<int32_t>();
  ParallelFor(ctx, slots, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      std::memcpy(y.value.raw() + static_cast<size_t>(r) * bytes,
                  value.raw() + static_cast<size_t>(token[r]) * bytes, bytes);
    }
  });
  if (ctx.tape == nullptr) return y;

  y.slot = ctx.tape->NewSlot();
  SlotId rs = ctx.tape->NewSlot();
  Node node{.name = "permute",
            .inputs = {x.slot},
            .outputs = {y.slot},
            .saved = {{rs, plan.row_of, Pass::kInput}}};
  node.input_grad = [rs, xs = x.slot, ys = y.slot, shape = value.shape(), slots](GradContext& g) {
    if (!g.Needs(xs)) return;
    Tensor row_of = g.Read(rs);
    Tensor dy = g.OutputGrad(ys).Reshape({slots, shape[1]});
    Tensor dx = g.ctx().Empty(shape, dy.dtype());
    Combine(g.ctx(), {dy, {}, row_of, dx});
    g.AddGrad(xs, dx);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

Var Unpermute(Context& ctx, const Var& rows, const Var& weights, const PermutationPlan& plan) {
  const int64_t tokens = plan.row_of.dim(0), d = rows.value.dim(1);
  CADRE_CHECK(
      rows.value.dim(0) == plan.token_of.numel() && weights.value.shape() == plan.row_of.shape(),
      "unpermute {} with weights {}", rows.value.shape().ToString(),
      weights.value.shape().ToString());
  Var y{ctx.Empty({tokens, d}, rows.value.dtype())};
  Combine(ctx, {rows.value, weights.value, plan.row_of, y.value});
  if (ctx.tape == nullptr) return y;

  Tape& tape = *ctx.tape;
  y.slot = tape.NewSlot();
  SlotId xs = tape.SlotToSave(rows), ws = tape.SlotToSave(weights), ps = tape.NewSlot();
  Node node{.name = "unpermute",
            .inputs = {rows.slot, weights.slot},
            .outputs = {y.slot},
            .saved = {{xs, rows.value, Pass::kInput},
                      {ws, weights.value, Pass::kInput},
                      {ps, plan.row_of, Pass::kInput}}};
  node.input_grad = [xs, ws, ps, x_in = rows.slot, w_in = weights.slot, ys = y.slot, tokens,
                     d](GradContext& g) {
    Tensor rows = g.Read(xs), weights = g.Read(ws);
    CombineGradArgs grad{rows,
                         weights,
                         g.Read(ps),
                         g.OutputGrad(ys).Reshape({tokens, d}),
                         g.ctx().Empty(rows.shape(), rows.dtype()),
                         g.ctx().Empty(weights.shape(), weights.dtype())};
    CombineGrad(g.ctx(), grad);
    g.AddGrad(x_in, grad.drows);
    g.AddGrad(w_in, grad.dweights);
  };
  tape.Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
