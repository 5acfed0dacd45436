#include "core/ops/matmul.h"

#include <optional>

#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "core/ops/gemm_quant.h"

namespace cadre::ops {
namespace {

using Direction = PackedWeights::Direction;

DType OutputType(const Tensor& x, bool fp32) {
  return fp32 && x.dtype() != DType::kF64 ? DType::kF32 : x.dtype();
}

// A weight leased for one closure; converted where the product runs in another dtype.
struct Operand {
  LeasedWeight lease;
  Tensor tensor;
  bool converted;

  Operand(Context& ctx, ParamId id, Lease why, DType dtype)
      : lease(ctx, id, why),
        tensor(CastTensor(ctx, lease.tensor(), dtype)),
        converted(tensor.dtype() != lease.tensor().dtype()) {}
};

Tensor OptionalBias(Context& ctx, ParamId bias, Lease why, DType dtype) {
  if (bias == kNoParam) return {};
  LeasedWeight lease(ctx, bias, why);
  return CastTensor(ctx, lease.tensor(), dtype);
}

// Whether the parameter is quantized: then y is x w^T (+ bias).
bool QuantizedForward(Context& ctx, const Tensor& x, const MatMulArgs& args, const Tensor& y) {
  if (ctx.parameters->quantized(args.weight) == nullptr) return false;
  CADRE_CHECK(!args.fp32, "{} is quantized and wanted in fp32",
              ctx.parameters->spec(args.weight).name);
  const Tensor bias = OptionalBias(ctx, args.bias, Lease::kForward, x.dtype());
  return QuantizedWeightGemm(ctx, {.param = args.weight, .a = x, .c = y, .bias = bias});
}

void Product(Context& ctx, ParamId param, const Operand& weight, Direction direction,
             const GemmArgs& gemm) {
  if (weight.converted) return Gemm(ctx, gemm);
  WeightGemm(ctx, {.param = param,
                   .weight = weight.tensor,
                   .direction = direction,
                   .a = gemm.a,
                   .c = gemm.c,
                   .bias = gemm.bias});
}

void AddWeightGradients(Context& ctx, const MatMulArgs& args, const Tensor& x, const Tensor& dy) {
  ParameterStore& store = *ctx.parameters;
  if (store.WantsGradient(args.weight)) {
    Tensor dw = store.Gradient(args.weight);
    Gemm(ctx, {.a = dy, .b = x, .c = dw, .transpose_a = true, .accumulate = true});
  }
  if (args.bias != kNoParam && store.WantsGradient(args.bias)) {
    AddColumnSums(ctx, dy, store.Gradient(args.bias));
  }
}

// The parameters of an op whose gradients are wanted.
std::vector<ParamId> Wanted(Context& ctx, ParamId weight, ParamId bias) {
  std::vector<ParamId> wanted;
  for (ParamId id : {weight, bias}) {
    if (id != kNoParam && ctx.parameters->WantsGradient(id)) wanted.push_back(id);
  }
  return wanted;
}

void RecordMatMul(Context& ctx, const Var& x, const Var& y, const MatMulArgs& args) {
  Tape& tape = *ctx.tape;
  SlotId xs = tape.SlotToSave(x), ys = y.slot;
  const Shape shape = x.value.shape();
  const DType type = x.value.dtype(), compute = y.value.dtype();
  Node node{.name = "matmul",
            .inputs = {x.slot},
            .outputs = {ys},
            .saved = {{xs, x.value, Pass::kWeight}},
            .params = Wanted(ctx, args.weight, args.bias)};
  node.input_grad = [=, in = x.slot](GradContext& g) {
    if (!g.Needs(in)) return;
    Operand weight(g.ctx(), args.weight, g.lease(), compute);
    Tensor dx = g.ctx().Empty(shape, compute);
    Product(g.ctx(), args.weight, weight, Direction::kInputGrad,
            {.a = g.OutputGrad(ys).Reshape({shape[0], weight.tensor.dim(0)}),
             .b = weight.tensor,
             .c = dx});
    g.AddGrad(in, CastTensor(g.ctx(), dx, type));
  };
  if (!node.params.empty()) {
    node.weight_grad = [=](GradContext& g) {
      Tensor dy = g.OutputGrad(ys), x = CastTensor(g.ctx(), g.Read(xs).Reshape(shape), compute);
      AddWeightGradients(g.ctx(), args, x,
                         dy.Reshape({shape[0], dy.numel() / std::max<int64_t>(1, shape[0])}));
    };
  }
  tape.Record(std::move(node));
}

// Views of one expert's part.
Tensor Matrix(const Tensor& stack, int64_t expert) {
  return stack.Narrow(expert, 1).Reshape({stack.dim(1), stack.dim(2)});
}

struct ExpertRows {
  int64_t expert, begin, rows;
};

std::vector<ExpertRows> NonEmpty(const std::vector<int32_t>& offsets) {
  std::vector<ExpertRows> parts;
  for (size_t e = 0; e + 1 < offsets.size(); ++e) {
    if (offsets[e + 1] > offsets[e]) {
      parts.push_back({static_cast<int64_t>(e), offsets[e], offsets[e + 1] - offsets[e]});
    }
  }
  return parts;
}

void GroupedForward(Context& ctx, const Tensor& x, const GroupedMatMulArgs& args, const Tensor& y) {
  std::optional<LeasedWeight> weight;
  if (ctx.parameters->quantized(args.weight) == nullptr) {
    weight.emplace(ctx, args.weight, Lease::kForward);
  }
  Tensor bias = OptionalBias(ctx, args.bias, Lease::kForward, x.dtype());
  for (const ExpertRows& part : NonEmpty(args.offsets)) {
    Tensor expert_bias;
    if (bias.defined()) expert_bias = bias.Narrow(part.expert, 1).Reshape({bias.dim(1)});
    const QuantizedWeightArgs quantized{.param = args.weight,
                                        .expert = part.expert,
                                        .a = x.Narrow(part.begin, part.rows),
                                        .c = y.Narrow(part.begin, part.rows),
                                        .bias = expert_bias};
    if (QuantizedWeightGemm(ctx, quantized)) continue;
    WeightGemm(ctx, {.param = args.weight,
                     .expert = part.expert,
                     .weight = Matrix(weight->tensor(), part.expert),
                     .a = quantized.a,
                     .c = quantized.c,
                     .bias = expert_bias});
  }
}

void GroupedInputGrad(Context& ctx, const Tensor& dy, const GroupedMatMulArgs& args,
                      const Tensor& dx) {
  LeasedWeight weight(ctx, args.weight, Lease::kInputGrad);
  for (const ExpertRows& part : NonEmpty(args.offsets)) {
    WeightGemm(ctx, {.param = args.weight,
                     .expert = part.expert,
                     .weight = Matrix(weight.tensor(), part.expert),
                     .direction = Direction::kInputGrad,
                     .a = dy.Narrow(part.begin, part.rows),
                     .c = dx.Narrow(part.begin, part.rows)});
  }
}

void GroupedWeightGrad(Context& ctx, const Tensor& x, const Tensor& dy,
                       const GroupedMatMulArgs& args) {
  ParameterStore& store = *ctx.parameters;
  for (const ExpertRows& part : NonEmpty(args.offsets)) {
    Tensor rows = dy.Narrow(part.begin, part.rows);
    if (store.WantsGradient(args.weight)) {
      Gemm(ctx, {.a = rows,
                 .b = x.Narrow(part.begin, part.rows),
                 .c = Matrix(store.Gradient(args.weight), part.expert),
                 .transpose_a = true,
                 .accumulate = true});
    }
    if (args.bias != kNoParam && store.WantsGradient(args.bias)) {
      Tensor sums = store.Gradient(args.bias).Narrow(part.expert, 1);
      AddColumnSums(ctx, rows, sums.Reshape({sums.numel()}));
    }
  }
}

}  // namespace

Var MatMul(Context& ctx, const Var& x, const MatMulArgs& args) {
  const Shape& weight_shape = ctx.parameters->spec(args.weight).shape;
  CADRE_CHECK(
      x.value.shape().rank() == 2 && weight_shape.rank() == 2 && x.value.dim(1) == weight_shape[1],
      "matmul of {} with {} {}", x.value.shape().ToString(), ctx.parameters->spec(args.weight).name,
      weight_shape.ToString());
  const DType compute = OutputType(x.value, args.fp32);
  Var y{ctx.Empty({x.value.dim(0), weight_shape[0]}, compute)};
  if (!QuantizedForward(ctx, x.value, args, y.value)) {
    Operand weight(ctx, args.weight, Lease::kForward, compute);
    Product(ctx, args.weight, weight, Direction::kForward,
            {.a = CastTensor(ctx, x.value, compute),
             .b = weight.tensor,
             .c = y.value,
             .transpose_b = true,
             .bias = OptionalBias(ctx, args.bias, Lease::kForward, compute)});
  }
  if (ctx.tape == nullptr) return y;
  y.slot = ctx.tape->NewSlot();
  RecordMatMul(ctx, x, y, args);
  return y;
}

Var GroupedMatMul(Context& ctx, const Var& x, const GroupedMatMulArgs& args) {
  const Shape& shape = ctx.parameters->spec(args.weight).shape;
  CADRE_CHECK(shape.rank() == 3 && x.value.dim(1) == shape[2] &&
                  static_cast<int64_t>(args.offsets.size()) == shape[0] + 1 &&
                  args.offsets.back() == x.value.dim(0),
              "grouped matmul of {} with {}", x.value.shape().ToString(), shape.ToString());
  Var y{ctx.Empty({x.value.dim(0), shape[1]}, x.value.dtype())};
  GroupedForward(ctx, x.value, args, y.value);
  if (ctx.tape == nullptr) return y;

  Tape& tape = *ctx.tape;
  y.slot = tape.NewSlot();
  SlotId xs = tape.SlotToSave(x), ys = y.slot;
  const Shape in_shape = x.value.shape(), out_shape = y.value.shape();
  Node node{.name = "grouped_matmul",
            .inputs = {x.slot},
            .outputs = {ys},
            .saved = {{xs, x.value, Pass::kWeight}},
            .params = Wanted(ctx, args.weight, args.bias)};
  node.input_grad = [=, in = x.slot](GradContext& g) {
    if (!g.Needs(in)) return;
    Tensor dy = g.OutputGrad(ys).Reshape(out_shape);
    Tensor dx = g.ctx().Empty(in_shape, dy.dtype());
    GroupedInputGrad(g.ctx(), dy, args, dx);
    g.AddGrad(in, dx);
  };
  if (!node.params.empty()) {
    node.weight_grad = [=](GradContext& g) {
      GroupedWeightGrad(g.ctx(), g.Read(xs).Reshape(in_shape), g.OutputGrad(ys).Reshape(out_shape),
                        args);
    };
  }
  tape.Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
