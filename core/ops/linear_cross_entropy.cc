#include "core/ops/linear_cross_entropy.h"

#include <algorithm>
#include <optional>

#include "core/ops/gemm.h"
#include "core/ops/gemm_quant.h"
#include "core/ops/kernel.h"
#include "core/ops/softmax_rows.h"

namespace cadre::ops {
namespace {

using Direction = PackedWeights::Direction;

DType Wide(DType dtype) { return dtype == DType::kF64 ? DType::kF64 : DType::kF32; }

int64_t ChunkRows(const LinearCrossEntropyArgs& args, int64_t tokens, int64_t vocabulary) {
  int64_t rows = args.chunk_rows;
  if (rows == 0) rows = std::max<int64_t>(64, (int64_t{1} << 24) / vocabulary / 64 * 64);
  return std::min(rows, std::max<int64_t>(tokens, 1));
}

void RunRows(Context& ctx, const CrossEntropyRowsArgs& args) {
  if (KernelFor(args.logits) == Kernel::kReference) return CrossEntropyRowsReference(ctx, args);
  CrossEntropyRowsCpu(ctx, args);
}

double At(const Tensor& x, int64_t i) {
  return x.dtype() == DType::kF64 ? x.data<double>()[i] : x.data<float>()[i];
}

void CheckArgs(const Tensor& hidden, const Shape& weight, const Tensor& targets,
               int64_t vocabulary) {
  CADRE_CHECK(hidden.dim(0) == targets.numel() && hidden.dim(1) == weight[1],
              "hidden {}, weight {}, {} targets", hidden.shape().ToString(), weight.ToString(),
              targets.numel());
  for (int32_t target : targets.span<int32_t>()) {
    CADRE_CHECK(target >= -1 && target < vocabulary, "target {}, the vocabulary is {}", target,
                vocabulary);
  }
}

// One forward over all chunks.
class Chunks {
 public:
  Chunks(Context& ctx, const Tensor& hidden, const LinearCrossEntropyArgs& args)
      : ctx_(ctx), hidden_(hidden), args_(args), shape_(ctx.parameters->spec(args.weight).shape) {
    if (ctx.parameters->quantized(args.weight) == nullptr) {
      lease_.emplace(ctx, args.weight, Lease::kForward);
    }
    // Without packed weights each chunk's product would pack them again.
    if (ctx_.packed == nullptr) ctx_.packed = &packed_;
    const int64_t tokens = hidden.dim(0), columns = shape_[0];
    const int64_t vocabulary = args.cut.vocabulary == 0 ? columns : args.cut.vocabulary;
    CheckArgs(hidden, shape_, args.targets, vocabulary);
    // By the whole vocabulary: ranks with unequal parts of it have to cut alike.
    chunk_ = ChunkRows(args, tokens, vocabulary);
    const DType wide = Wide(hidden.dtype());
    logits_ = ctx_.Empty({chunk_, columns}, wide);
    log_sum_exp_ = ctx_.Empty({chunk_}, wide);
    logprobs_ = ctx_.Empty({tokens}, wide);
  }

  // Gradients that will be computed on the way.
  void WantGradients(bool hidden, bool weight) {
    if (hidden) dhidden_ = ctx_.Empty(hidden_.shape(), hidden_.dtype());
    if (weight) dweight_ = ctx_.parameters->Gradient(args_.weight);
    if (hidden || weight) {
      dlogits_ = ctx_.Empty({chunk_, shape_[0]}, hidden_.dtype());
    }
  }

  LinearCrossEntropyResult Run() {
    LinearCrossEntropyResult result;
    for (int64_t begin = 0; begin < hidden_.dim(0); begin += chunk_) {
      RunChunk(begin, std::min(chunk_, hidden_.dim(0) - begin), result);
    }
    result.logprobs = logprobs_;
    result.loss.value = ctx_.Empty({1}, DType::kF64);
    result.loss.value.data<double>()[0] = result.cross_entropy + result.z_loss;
    return result;
  }

  const Tensor& dhidden() const { return dhidden_; }

 private:
  void Product(Direction direction, const Tensor& a, const Tensor& c) {
    if (!lease_.has_value()) {
      CADRE_CHECK(direction == Direction::kForward, "no gradient passes through a quantized head");
      QuantizedWeightGemm(ctx_, {.param = args_.weight, .a = a, .c = c});
      return;
    }
    WeightGemm(ctx_, {.param = args_.weight,
                      .weight = lease_->tensor(),
                      .direction = direction,
                      .a = a,
                      .c = c});
  }

  void RunChunk(int64_t begin, int64_t rows, LinearCrossEntropyResult& result) {
    Tensor x = hidden_.Narrow(begin, rows), logits = logits_.Narrow(0, rows);
    Product(Direction::kForward, x, logits);
    CrossEntropyRowsArgs args{.logits = logits,
                              .targets = args_.targets.Narrow(begin, rows),
                              .scale = args_.scale * args_.expected_gradient,
                              .z_coefficient = args_.z_coefficient,
                              .log_sum_exp = log_sum_exp_.Narrow(0, rows),
                              .logprobs = logprobs_.Narrow(begin, rows),
                              .first = args_.cut.first,
                              .combine = args_.cut.combine};
    if (dlogits_.defined()) args.dlogits = dlogits_.Narrow(0, rows);
    RunRows(ctx_, args);
    if (dhidden_.defined()) {
      Product(Direction::kInputGrad, args.dlogits, dhidden_.Narrow(begin, rows));
    }
    if (dweight_.defined()) {
      Gemm(ctx_,
           {.a = args.dlogits, .b = x, .c = dweight_, .transpose_a = true, .accumulate = true});
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (args.targets.data<int32_t>()[r] < 0) continue;
      const double lse = At(args.log_sum_exp, r);
      result.cross_entropy -= args_.scale * At(args.logprobs, r);
      result.z_loss += args_.scale * args_.z_coefficient * lse * lse;
    }
  }

  Context ctx_;
  PackedWeights packed_;
  Tensor hidden_;
  const LinearCrossEntropyArgs& args_;
  Shape shape_;                        // of the weight
  std::optional<LeasedWeight> lease_;  // none: it is quantized
  int64_t chunk_ = 0;
  Tensor logits_, log_sum_exp_, logprobs_;
  Tensor dlogits_, dhidden_, dweight_;  // undefined where not wanted
};

void CheckSeed(GradContext& g, SlotId loss, float expected) {
  const double got = g.OutputGrad(loss).data<double>()[0];
  CADRE_CHECK(got == expected, "the loss's gradient is {}, computed for {}", got, expected);
}

}  // namespace

Tensor Logits(Context& ctx, const Tensor& hidden, ParamId weight) {
  const int64_t columns = ctx.parameters->spec(weight).shape[0];
  Tensor logits = ctx.Empty({hidden.dim(0), columns}, Wide(hidden.dtype()));
  if (QuantizedWeightGemm(ctx, {.param = weight, .a = hidden, .c = logits})) return logits;
  LeasedWeight lease(ctx, weight, Lease::kForward);
  WeightGemm(ctx, {.param = weight, .weight = lease.tensor(), .a = hidden, .c = logits});
  return logits;
}

LinearCrossEntropyResult LinearCrossEntropy(Context& ctx, const Var& hidden,
                                            const LinearCrossEntropyArgs& args) {
  if (hidden.value.device().kind == DeviceKind::kCuda) NoCudaKernel("linear_cross_entropy");
  Chunks chunks(ctx, hidden.value, args);
  if (ctx.tape == nullptr) return chunks.Run();

  // A quantized head gives the loss alone.
  const bool quantized = ctx.parameters->quantized(args.weight) != nullptr;
  const bool wants_hidden = hidden.slot != kNoSlot && !quantized;
  const bool wants_weight = ctx.parameters->WantsGradient(args.weight);
  chunks.WantGradients(wants_hidden, wants_weight);
  LinearCrossEntropyResult result = chunks.Run();
  SlotId ls = result.loss.slot = ctx.tape->NewSlot();
  Node node{.name = "linear_cross_entropy", .inputs = {hidden.slot}, .outputs = {ls}};
  if (quantized) {
    node.input_grad = [](GradContext&) {
      CADRE_CHECK(false, "no gradient passes through a quantized head");
    };
  }
  if (wants_hidden) {
    SlotId ds = ctx.tape->NewSlot();
    node.saved = {{ds, chunks.dhidden(), Pass::kInput}};
    node.input_grad = [ds, ls, hs = hidden.slot,
                       expected = args.expected_gradient](GradContext& g) {
      CheckSeed(g, ls, expected);
      g.AddGrad(hs, g.Read(ds));
    };
  }
  if (wants_weight) {
    node.params = {args.weight};
    node.weight_grad = [ls, expected = args.expected_gradient](GradContext& g) {
      CheckSeed(g, ls, expected);
    };
  }
  ctx.tape->Record(std::move(node));
  return result;
}

}  // namespace cadre::ops
