#include "core/ops/topk_gate.h"

#include <numeric>

#include "core/ops/kernel.h"
#include "core/ops/topk_gate_rows.h"
#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

// Calls visitor(float{}) or visitor(double{}).
template <typename Visitor>
void VisitReal(const Tensor& x, Visitor&& visitor) {
  if (x.device().kind == DeviceKind::kCuda) NoCudaKernel("topk_gate");
  if (x.dtype() == DType::kF64) return visitor(double{});
  CADRE_CHECK(x.dtype() == DType::kF32, "router logits of dtype {}", static_cast<int>(x.dtype()));
  visitor(float{});
}

void Check(const Tensor& logits, const TopKGateArgs& args) {
  const int64_t experts = logits.dim(1);
  CADRE_CHECK(args.groups > 0 && experts % args.groups == 0 && args.kept_groups > 0 &&
                  args.kept_groups <= args.groups,
              "{} of {} groups of {} experts", args.kept_groups, args.groups, experts);
  CADRE_CHECK(args.k > 0 && args.k <= experts / args.groups * args.kept_groups, "top {} of {}",
              args.k, experts);
  CADRE_CHECK(!args.correction.defined() ||
                  (args.correction.numel() == experts && args.correction.dtype() == logits.dtype()),
              "score correction {}", args.correction.shape().ToString());
}

template <typename Real>
void Forward(Context& ctx, const Tensor& logits, const TopKGateArgs& args, const Tensor& scores,
             const Gate& gate) {
  const int64_t experts = logits.dim(1), k = args.k;
  ParallelFor(ctx, logits.dim(0), 64, [&](int64_t begin, int64_t end) {
    GateScratch<Real> scratch;
    for (int64_t t = begin; t < end; ++t) {
      Real* s = scores.data<Real>() + t * experts;
      int32_t* ids = gate.ids.data<int32_t>() + t * k;
      GateScores(args.score, logits.data<Real>() + t * experts, experts, s);
      ChooseExperts(args, s, experts, scratch, ids);
      GateWeights(args, s, ids, gate.weights.value.data<Real>() + t * k);
      GateProbs(args.score, s, experts, gate.probs.value.data<Real>() + t * experts);
    }
  });
}

struct GateGradArgs {
  Tensor scores, ids;
  Tensor dweights, dprobs;  // either may be undefined
  Tensor dlogits;
};

template <typename Real>
void Backward(Context& ctx, const TopKGateArgs& args, const GateGradArgs& grad) {
  const int64_t experts = grad.scores.dim(1), k = args.k;
  ParallelFor(ctx, grad.scores.dim(0), 64, [&](int64_t begin, int64_t end) {
    std::vector<Real> scratch;
    for (int64_t t = begin; t < end; ++t) {
      GateGradRow<Real>(args,
                        {grad.scores.data<Real>() + t * experts, grad.ids.data<int32_t>() + t * k,
                         grad.dweights.defined() ? grad.dweights.data<Real>() + t * k : nullptr,
                         grad.dprobs.defined() ? grad.dprobs.data<Real>() + t * experts : nullptr,
                         grad.dlogits.data<Real>() + t * experts},
                        experts, scratch);
    }
  });
}

}  // namespace

Gate TopKGate(Context& ctx, const Var& logits, const TopKGateArgs& args) {
  Check(logits.value, args);
  const int64_t tokens = logits.value.dim(0);
  const DType dtype = logits.value.dtype();
  Gate gate{ctx.Empty({tokens, args.k}, DType::kI32),
            {ctx.Empty({tokens, args.k}, dtype)},
            {ctx.Empty(logits.value.shape(), dtype)}};
  // Softmax scores are the probabilities themselves.
  Tensor scores =
      args.score == GateScore::kSoftmax ? gate.probs.value : ctx.Empty(logits.value.shape(), dtype);
  VisitReal(logits.value,
            [&](auto t) { Forward<decltype(t)>(ctx, logits.value, args, scores, gate); });
  if (ctx.tape == nullptr) return gate;

  Tape& tape = *ctx.tape;
  SlotId ws = gate.weights.slot = tape.NewSlot(), ps = gate.probs.slot = tape.NewSlot();
  SlotId ss = tape.NewSlot(), is = tape.NewSlot();
  Node node{.name = "topk_gate",
            .inputs = {logits.slot},
            .outputs = {ws, ps},
            .saved = {{ss, scores, Pass::kInput}, {is, gate.ids, Pass::kInput}}};
  // The correction only chooses, so the closure does without it.
  TopKGateArgs kept = args;
  kept.correction = {};
  node.input_grad = [kept, ws, ps, ss, is, in = logits.slot](GradContext& g) {
    if (!g.Needs(in)) return;
    Tensor scores = g.Read(ss);
    GateGradArgs grad{scores, g.Read(is), g.OutputGrad(ws), g.OutputGrad(ps),
                      g.ctx().Empty(scores.shape(), scores.dtype())};
    VisitReal(scores, [&](auto t) { Backward<decltype(t)>(g.ctx(), kept, grad); });
    g.AddGrad(in, grad.dlogits);
  };
  tape.Record(std::move(node));
  return gate;
}

Tensor ExpertCounts(Context& ctx, const Tensor& ids, std::span<const int32_t> offsets,
                    int64_t experts) {
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1, k = ids.dim(1);
  CADRE_CHECK(segments >= 0 && offsets.front() == 0 && offsets.back() == ids.dim(0),
              "segments of {} tokens", ids.dim(0));
  Tensor counts = ctx.Zeros({segments, experts}, DType::kI32);
  for (int64_t s = 0; s < segments; ++s) {
    int32_t* row = counts.data<int32_t>() + s * experts;
    for (int64_t i = offsets[s] * k; i < offsets[s + 1] * k; ++i) ++row[ids.data<int32_t>()[i]];
  }
  return counts;
}

namespace {

// coefficient * f[s, e] / L_s: what one token's probability of e adds to the loss. A segment's
// length follows from its counts, since each token chose k experts.
std::vector<double> BalanceSlopes(const Tensor& counts, int64_t k, double coefficient) {
  const int64_t segments = counts.dim(0), experts = counts.dim(1);
  std::vector<double> slopes(static_cast<size_t>(segments * experts), 0.0);
  for (int64_t s = 0; s < segments; ++s) {
    const int32_t* row = counts.data<int32_t>() + s * experts;
    const double length = static_cast<double>(std::accumulate(row, row + experts, int64_t{0})) /
                          static_cast<double>(k);
    if (length == 0) continue;
    const double scale =
        coefficient * static_cast<double>(experts) / (static_cast<double>(k) * length * length);
    for (int64_t e = s * experts; e < (s + 1) * experts; ++e) {
      slopes[e] = scale * counts.data<int32_t>()[e];
    }
  }
  return slopes;
}

// Calls body(token, its segment's slopes).
template <typename Body>
void ForTokens(std::span<const int32_t> offsets, const std::vector<double>& slopes, int64_t experts,
               const Body& body) {
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    for (int64_t t = offsets[s]; t < offsets[s + 1]; ++t) {
      body(t, slopes.data() + static_cast<int64_t>(s) * experts);
    }
  }
}

Var ScalarVar(Context& ctx, double value) {
  Var y{ctx.Empty({1}, DType::kF64)};
  y.value.data<double>()[0] = value;
  if (ctx.tape != nullptr) y.slot = ctx.tape->NewSlot();
  return y;
}

}  // namespace

Var BalanceLoss(Context& ctx, const Var& probs, const BalanceLossArgs& args) {
  const int64_t experts = probs.value.dim(1);
  Tensor counts = ExpertCounts(ctx, args.ids, args.offsets, experts);
  if (args.combine) args.combine(ctx, counts);
  std::vector<double> slopes = BalanceSlopes(counts, args.ids.dim(1), args.coefficient);
  double loss = 0;
  VisitReal(probs.value, [&](auto real) {
    const auto* p = probs.value.data<decltype(real)>();
    ForTokens(args.offsets, slopes, experts, [&](int64_t t, const double* slope) {
      for (int64_t e = 0; e < experts; ++e) loss += slope[e] * p[t * experts + e];
    });
  });
  Var y = ScalarVar(ctx, loss);
  if (ctx.tape == nullptr) return y;

  Node node{.name = "balance_loss", .inputs = {probs.slot}, .outputs = {y.slot}};
  node.input_grad = [ps = probs.slot, ys = y.slot, slopes = std::move(slopes),
                     offsets = std::vector<int32_t>(args.offsets.begin(), args.offsets.end()),
                     shape = probs.value.shape(), dtype = probs.value.dtype()](GradContext& g) {
    if (!g.Needs(ps)) return;
    const double dy = g.OutputGrad(ys).data<double>()[0];
    Tensor dx = g.ctx().Empty(shape, dtype);
    VisitReal(dx, [&](auto real) {
      auto* out = dx.data<decltype(real)>();
      const int64_t experts = shape[1];
      ForTokens(offsets, slopes, experts, [&](int64_t t, const double* slope) {
        for (int64_t e = 0; e < experts; ++e) {
          out[t * experts + e] = static_cast<decltype(real)>(dy * slope[e]);
        }
      });
    });
    g.AddGrad(ps, dx);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

Var RouterZLoss(Context& ctx, const Var& logits, double coefficient) {
  const int64_t tokens = logits.value.dim(0), experts = logits.value.dim(1);
  double loss = 0;
  VisitReal(logits.value, [&](auto real) {
    for (int64_t t = 0; t < tokens; ++t) {
      const double lse = LogSumExpOf(logits.value.data<decltype(real)>() + t * experts, experts);
      loss += coefficient * lse * lse;
    }
  });
  Var y = ScalarVar(ctx, loss);
  if (ctx.tape == nullptr) return y;

  SlotId xs = ctx.tape->SlotToSave(logits);
  Node node{.name = "router_z_loss",
            .inputs = {logits.slot},
            .outputs = {y.slot},
            .saved = {{xs, logits.value, Pass::kInput}}};
  node.input_grad = [xs, in = logits.slot, ys = y.slot, coefficient](GradContext& g) {
    if (!g.Needs(in)) return;
    Tensor x = g.Read(xs), dx = g.ctx().Empty(x.shape(), x.dtype());
    const double scale = 2 * coefficient * g.OutputGrad(ys).data<double>()[0];
    VisitReal(x, [&](auto real) {
      using Real = decltype(real);
      const int64_t experts = x.dim(1);
      for (int64_t t = 0; t < x.dim(0); ++t) {
        const Real *row = x.data<Real>() + t * experts, lse = LogSumExpOf(row, experts);
        Real* out = dx.data<Real>() + t * experts;
        for (int64_t e = 0; e < experts; ++e) {
          out[e] = static_cast<Real>(scale) * lse * std::exp(row[e] - lse);
        }
      }
    });
    g.AddGrad(in, dx);
  };
  ctx.tape->Record(std::move(node));
  return y;
}

}  // namespace cadre::ops
