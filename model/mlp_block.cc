#include "model/mlp_block.h"

#include "core/ops/elementwise.h"
#include "core/ops/matmul.h"

namespace cadre {
namespace {

using Layout = ParamSource::Layout;

ops::SwiGluArgs ActivationArgs(MlpActivation activation, double limit) {
  if (activation == MlpActivation::kSwiGlu) return {};
  return ops::SwiGluArgs::GptOss(static_cast<float>(limit));
}

struct RouterNames {
  const char* projection;
  const char* bias;
};

RouterNames NamesOf(ExpertFiles files) {
  switch (files) {
    case ExpertFiles::kMlp:
      return {"mlp.gate.weight", "mlp.gate.bias"};
    case ExpertFiles::kMixtral:
      return {"block_sparse_moe.gate.weight", "block_sparse_moe.gate.bias"};
    case ExpertFiles::kFused:
      return {"mlp.router.weight", "mlp.router.bias"};
  }
  __builtin_unreachable();
}

moe::Router MakeRouter(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                       ParamBuilder& params) {
  RouterNames names = NamesOf(spec.files);
  moe::RouterParams ids;
  int64_t experts = spec.router.experts;
  ids.weight = params.Gate(prefix + names.projection, experts, hidden);
  if (spec.router.logit_bias) {
    ids.bias = params.Bias(prefix + names.bias, {{prefix + names.bias, experts}});
  }
  if (spec.router.kind == moe::RouterKind::kSigmoidBias) {
    std::string name = prefix + "mlp.gate.e_score_correction_bias";
    ids.correction = params.Add({.name = name,
                                 .shape = {experts},
                                 .sources = {{name, {experts}}},
                                 .decay = DecayKind::kNoDecay,
                                 .trainable = false,
                                 .fp32 = true});
  }
  return {spec.router, ids};
}

ParamSpec ExpertMatrix(const std::string& name, const Shape& shape, const ParamBuilder& params) {
  return {.name = name,
          .shape = shape,
          .init = params.Normal(),
          .group = ParamGroup::kExpert,
          .use = ParamUse::kProjection};
}

ParamSpec ExpertBias(const std::string& name, const Shape& shape) {
  return {.name = name, .shape = shape, .decay = DecayKind::kNoDecay, .group = ParamGroup::kExpert};
}

// What a rank holds of the experts: `count` of them from `first` on, of each the columns
// [inner_first, inner_first + inner) of the whole intermediate size.
struct ExpertShare {
  int64_t first, count, inner_first, inner;
};

ExpertShare ShareOf(const MoeSpec& spec, const ModelPart& part) {
  const int64_t experts = spec.router.experts / part.ep, inner = spec.intermediate / part.etp;
  CADRE_CHECK(experts * part.ep == spec.router.experts && inner * part.etp == spec.intermediate,
              "{} experts of {} columns over {} x {} ranks", spec.router.experts, spec.intermediate,
              part.ep, part.etp);
  return {part.ep_rank * experts, experts, part.etp_rank * inner, inner};
}

// gpt_oss: [E, in, out] tensors of all experts, gate and up interleaved.
moe::ExpertParams FusedExperts(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                               ParamBuilder& params) {
  const ExpertShare share = ShareOf(spec, params.part());
  const int64_t all = spec.router.experts, whole = spec.intermediate, inner = share.inner;
  std::string base = prefix + "mlp.experts.";
  ParamSpec gate_up = ExpertMatrix(base + "gate_up_proj", {share.count, 2 * inner, hidden}, params);
  ParamSpec gate_up_bias = ExpertBias(base + "gate_up_proj_bias", {share.count, 2 * inner});
  ParamSpec down = ExpertMatrix(base + "down_proj", {share.count, hidden, inner}, params);
  ParamSpec down_bias = ExpertBias(base + "down_proj_bias", {share.count, hidden});
  const ParamBlock columns = {.column_begin = share.inner_first, .columns = inner};
  for (int64_t e = share.first; e < share.first + share.count; ++e) {
    for (const int64_t half : {int64_t{0}, whole}) {  // gate rows, then up rows
      const ParamBlock rows = {.row_begin = half + share.inner_first, .rows = inner};
      gate_up.sources.push_back(
          {gate_up.name, {all, hidden, 2 * whole}, e, Layout::kTransposedInterleaved, rows});
      gate_up_bias.sources.push_back(
          {gate_up_bias.name, {all, 2 * whole}, e, Layout::kInterleavedVector, rows});
    }
    down.sources.push_back({down.name, {all, whole, hidden}, e, Layout::kTransposed, columns});
    down_bias.sources.push_back({down_bias.name, {all, hidden}, e});
  }
  moe::ExpertParams ids;
  ids.gate_up = params.Add(std::move(gate_up));
  ids.gate_up_bias = params.Add(std::move(gate_up_bias));
  ids.down = params.Add(std::move(down));
  ids.down_bias = params.Add(std::move(down_bias));
  return ids;
}

moe::ExpertParams SeparateExperts(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                                  ParamBuilder& params) {
  bool mixtral = spec.files == ExpertFiles::kMixtral;
  std::string base = prefix + (mixtral ? "block_sparse_moe.experts." : "mlp.experts.");
  const char* gate = mixtral ? ".w1.weight" : ".gate_proj.weight";
  const char* up = mixtral ? ".w3.weight" : ".up_proj.weight";
  const char* last = mixtral ? ".w2.weight" : ".down_proj.weight";
  const ExpertShare share = ShareOf(spec, params.part());
  const int64_t whole = spec.intermediate, inner = share.inner;
  ParamSpec gate_up = ExpertMatrix(base + "gate_up_proj", {share.count, 2 * inner, hidden}, params);
  ParamSpec down = ExpertMatrix(base + "down_proj", {share.count, hidden, inner}, params);
  const ParamBlock rows = {.row_begin = share.inner_first, .rows = inner};
  const ParamBlock columns = {.column_begin = share.inner_first, .columns = inner};
  for (int64_t e = share.first; e < share.first + share.count; ++e) {
    std::string expert = base + std::to_string(e);
    gate_up.sources.push_back({.tensor = expert + gate, .shape = {whole, hidden}, .block = rows});
    gate_up.sources.push_back({.tensor = expert + up, .shape = {whole, hidden}, .block = rows});
    down.sources.push_back({.tensor = expert + last, .shape = {hidden, whole}, .block = columns});
  }
  moe::ExpertParams ids;
  ids.gate_up = params.Add(std::move(gate_up));
  ids.down = params.Add(std::move(down));
  return ids;
}

moe::MoeLayer MakeRouted(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                         ParamBuilder& params) {
  moe::Router router = MakeRouter(hidden, spec, prefix, params);
  moe::ExpertParams experts = spec.files == ExpertFiles::kFused
                                  ? FusedExperts(hidden, spec, prefix, params)
                                  : SeparateExperts(hidden, spec, prefix, params);
  return {std::move(router), moe::Experts(experts, ActivationArgs(spec.activation, spec.limit)),
          moe::MakeDispatcher(spec.router.experts, params.part())};
}

}  // namespace

MlpBlock::MlpBlock(int64_t hidden, const MlpSpec& spec, const std::string& prefix,
                   ParamBuilder& params)
    : tokens_(params.part()), activation_(ActivationArgs(spec.activation, spec.limit)) {
  const ModelPart& part = params.part();
  CADRE_CHECK(spec.intermediate % part.tp == 0, "{} columns over {} ranks", spec.intermediate,
              part.tp);
  const ParamBlock rows = part.Rows(spec.intermediate);
  gate_up_ = params.Matrix(prefix + "gate_up_proj.weight",
                           {{prefix + "gate_proj.weight", spec.intermediate, rows},
                            {prefix + "up_proj.weight", spec.intermediate, rows}},
                           hidden);
  down_ = params.Matrix(prefix + "down_proj.weight", hidden, spec.intermediate,
                        part.Columns(spec.intermediate));
  if (!spec.bias) return;
  gate_up_bias_ = params.Bias(prefix + "gate_up_proj.bias",
                              {{prefix + "gate_proj.bias", spec.intermediate, rows},
                               {prefix + "up_proj.bias", spec.intermediate, rows}});
  down_bias_ = params.Bias(prefix + "down_proj.bias", {{prefix + "down_proj.bias", hidden}},
                           /*partial=*/true);
}

PendingOutput MlpBlock::Forward(Context& ctx, const Var& x, int layer) const {
  const OpLabel label = {"mlp", layer};
  const Var all = tokens_.Enter(ctx, x, label);
  Var gate_up = ops::MatMul(ctx, all, {.weight = gate_up_, .bias = gate_up_bias_});
  Var inner = ops::SwiGlu(ctx, gate_up, activation_);
  const Var partial = ops::MatMul(ctx, inner, {.weight = down_, .bias = BiasOnce(ctx, down_bias_)});
  return OutputOf(tokens_.Leave(ctx, partial, label));
}

MoeBlock::MoeBlock(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                   ParamBuilder& params)
    : routed_(MakeRouted(hidden, spec, prefix, params)) {
  if (spec.shared == SharedExpert::kNone) return;
  bool gated = spec.shared == SharedExpert::kGated;
  std::string base = prefix + (gated ? "mlp.shared_expert." : "mlp.shared_experts.");
  shared_.emplace(hidden, MlpSpec{.intermediate = spec.shared_intermediate}, base, params);
  if (gated) shared_gate_ = params.Gate(prefix + "mlp.shared_expert_gate.weight", 1, hidden);
}

MoeBlock::Output MoeBlock::Forward(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                                   const moe::RouterOptions& options, int layer) const {
  moe::MoeLayer::InFlight flight = routed_.Start(ctx, x, offsets, options, layer);
  // Beside the tokens' way to their experts, and in the backward pass beside their gradients' way
  // back.
  PendingOutput shared;
  if (shared_) shared = shared_->Forward(ctx, x, layer);
  moe::MoeLayer::Output routed = routed_.Finish(ctx, std::move(flight), layer);
  PendingOutput own_experts = OutputOf(std::move(routed.y));
  if (!shared_) return {std::move(own_experts), std::move(routed.routing)};
  PendingOutput y = [x, routed = std::move(own_experts), gate = shared_gate_,
                     shared = std::move(shared)](Context& ctx) {
    Var own = shared(ctx);
    if (gate != kNoParam) {
      own = ops::SigmoidGate(ctx, own, ops::MatMul(ctx, x, {.weight = gate}));
    }
    return ops::Add(ctx, routed(ctx), own);
  };
  return {std::move(y), std::move(routed.routing)};
}

}  // namespace cadre
