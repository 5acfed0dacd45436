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
  ids.weight = params.Matrix(prefix + names.projection, experts, hidden);
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
  return {.name = name, .shape = shape, .init = params.Normal(), .group = ParamGroup::kExpert};
}

ParamSpec ExpertBias(const std::string& name, const Shape& shape) {
  return {.name = name, .shape = shape, .decay = DecayKind::kNoDecay, .group = ParamGroup::kExpert};
}

// gpt_oss: [E, in, out] tensors of all experts, gate and up interleaved.
moe::ExpertParams FusedExperts(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                               ParamBuilder& params) {
  int64_t experts = spec.router.experts, inner = spec.intermediate;
  std::string base = prefix + "mlp.experts.";
  ParamSpec gate_up = ExpertMatrix(base + "gate_up_proj", {experts, 2 * inner, hidden}, params);
  ParamSpec gate_up_bias = ExpertBias(base + "gate_up_proj_bias", {experts, 2 * inner});
  ParamSpec down = ExpertMatrix(base + "down_proj", {experts, hidden, inner}, params);
  ParamSpec down_bias = ExpertBias(base + "down_proj_bias", {experts, hidden});
  for (int64_t e = 0; e < experts; ++e) {
    gate_up.sources.push_back(
        {gate_up.name, {experts, hidden, 2 * inner}, e, Layout::kTransposedInterleaved});
    gate_up_bias.sources.push_back(
        {gate_up_bias.name, {experts, 2 * inner}, e, Layout::kInterleavedVector});
    down.sources.push_back({down.name, {experts, inner, hidden}, e, Layout::kTransposed});
    down_bias.sources.push_back({down_bias.name, {experts, hidden}, e});
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
  int64_t experts = spec.router.experts, inner = spec.intermediate;
  ParamSpec gate_up = ExpertMatrix(base + "gate_up_proj", {experts, 2 * inner, hidden}, params);
  ParamSpec down = ExpertMatrix(base + "down_proj", {experts, hidden, inner}, params);
  for (int64_t e = 0; e < experts; ++e) {
    std::string expert = base + std::to_string(e);
    gate_up.sources.push_back({expert + gate, {inner, hidden}});
    gate_up.sources.push_back({expert + up, {inner, hidden}});
    down.sources.push_back({expert + last, {hidden, inner}});
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
          std::make_shared<moe::LocalDispatcher>(spec.router.experts)};
}

}  // namespace

MlpBlock::MlpBlock(int64_t hidden, const MlpSpec& spec, const std::string& prefix,
                   ParamBuilder& params)
    : activation_(ActivationArgs(spec.activation, spec.limit)) {
  gate_up_ = params.Matrix(prefix + "gate_up_proj.weight",
                           {{prefix + "gate_proj.weight", spec.intermediate},
                            {prefix + "up_proj.weight", spec.intermediate}},
                           hidden);
  down_ = params.Matrix(prefix + "down_proj.weight", hidden, spec.intermediate);
  if (!spec.bias) return;
  gate_up_bias_ =
      params.Bias(prefix + "gate_up_proj.bias", {{prefix + "gate_proj.bias", spec.intermediate},
                                                 {prefix + "up_proj.bias", spec.intermediate}});
  down_bias_ = params.Bias(prefix + "down_proj.bias", {{prefix + "down_proj.bias", hidden}});
}

Var MlpBlock::Forward(Context& ctx, const Var& x) const {
  Var gate_up = ops::MatMul(ctx, x, {.weight = gate_up_, .bias = gate_up_bias_});
  Var inner = ops::SwiGlu(ctx, gate_up, activation_);
  return ops::MatMul(ctx, inner, {.weight = down_, .bias = down_bias_});
}

MoeBlock::MoeBlock(int64_t hidden, const MoeSpec& spec, const std::string& prefix,
                   ParamBuilder& params)
    : routed_(MakeRouted(hidden, spec, prefix, params)) {
  if (spec.shared == SharedExpert::kNone) return;
  bool gated = spec.shared == SharedExpert::kGated;
  std::string base = prefix + (gated ? "mlp.shared_expert." : "mlp.shared_experts.");
  shared_.emplace(hidden, MlpSpec{.intermediate = spec.shared_intermediate}, base, params);
  if (gated) shared_gate_ = params.Matrix(prefix + "mlp.shared_expert_gate.weight", 1, hidden);
}

moe::MoeLayer::Output MoeBlock::Forward(Context& ctx, const Var& x,
                                        std::span<const int32_t> offsets,
                                        const moe::RouterLossOptions& losses) const {
  moe::MoeLayer::Output out = routed_.Forward(ctx, x, offsets, losses);
  if (!shared_) return out;
  Var shared = shared_->Forward(ctx, x);
  if (shared_gate_ != kNoParam) {
    shared = ops::SigmoidGate(ctx, shared, ops::MatMul(ctx, x, {.weight = shared_gate_}));
  }
  out.y = ops::Add(ctx, out.y, shared);
  return out;
}

}  // namespace cadre
