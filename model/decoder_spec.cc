#include "model/decoder_spec.h"

#include <algorithm>
#include <cmath>

#include "model/rope_spec.h"
#include "proto/model_config.pb.h"

namespace cadre {
namespace {

using config::ModelConfig;

// Far above any published model; below them every product of two sizes and the parameter count of
// a layer stay inside 63 bits.
constexpr int64_t kMaxSize = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxExperts = 65536;
constexpr int64_t kMaxExpertTensors = int64_t{1} << 20;  // over all layers
constexpr int64_t kMaxElements = int64_t{1} << 46;

absl::Status CheckRange(const char* field, bool present, int64_t value, int64_t low, int64_t high) {
  if (!present) return InvalidArgument("{}: missing (allowed: {} to {})", field, low, high);
  if (value < low || value > high) {
    return InvalidArgument("{}: {} (allowed: {} to {})", field, value, low, high);
  }
  return absl::OkStatus();
}

#define CADRE_CHECK_FIELD(config, field, low, high) \
  CADRE_RETURN_IF_ERROR(CheckRange(#field, config.has_##field(), config.field(), low, high))

absl::Status CheckMultiple(const char* whole, int64_t a, const char* part, int64_t b) {
  if (a % b == 0) return absl::OkStatus();
  return InvalidArgument("{}: {} is no multiple of {} {} ({} = {} x {} + {})", whole, a, part, b, a,
                         b, a / b, a % b);
}

absl::Status CheckBasics(const ModelConfig& c) {
  CADRE_CHECK_FIELD(c, vocab_size, 1, kMaxSize);
  CADRE_CHECK_FIELD(c, hidden_size, 1, kMaxSize);
  CADRE_CHECK_FIELD(c, num_hidden_layers, 1, kMaxLayers);
  CADRE_CHECK_FIELD(c, num_attention_heads, 1, 65536);
  if (c.has_hidden_act() && c.hidden_act() != "silu") {
    return InvalidArgument("hidden_act: '{}' (allowed: silu)", c.hidden_act());
  }
  if (c.attention_dropout() != 0.0) {
    return InvalidArgument("attention_dropout: {} (allowed: 0)", c.attention_dropout());
  }
  for (int id : c.eos_token_id()) {
    if (id < 0 || id >= c.vocab_size()) {
      return InvalidArgument("eos_token_id: {} (allowed: 0 to vocab_size - 1 = {})", id,
                             c.vocab_size() - 1);
    }
  }
  if (c.has_bos_token_id() && c.bos_token_id() >= c.vocab_size()) {
    return InvalidArgument("bos_token_id: {} (allowed: 0 to vocab_size - 1 = {})", c.bos_token_id(),
                           c.vocab_size() - 1);
  }
  return absl::OkStatus();
}

// Far outside what any model trains with; inside, an f32 neither overflows nor becomes zero.
constexpr double kLeastLimit = 1e-6, kMostLimit = 1e6;

absl::Status CheckReal(const char* field, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // NaN is neither
  return InvalidArgument("{}: {} (allowed: {} to {})", field, value, low, high);
}

absl::Status CheckLimits(const ModelConfig& c, const Architecture& arch) {
  if (arch.clip_qkv && c.has_clip_qkv()) {
    CADRE_RETURN_IF_ERROR(CheckReal("clip_qkv", c.clip_qkv(), kLeastLimit, kMostLimit));
  }
  if (arch.activation == MlpActivation::kClampedSwiGlu && c.has_swiglu_limit()) {
    CADRE_RETURN_IF_ERROR(CheckReal("swiglu_limit", c.swiglu_limit(), kLeastLimit, kMostLimit));
  }
  if (arch.moe == MoeRule::kAfterDense && c.has_routed_scaling_factor()) {
    CADRE_RETURN_IF_ERROR(
        CheckReal("routed_scaling_factor", c.routed_scaling_factor(), kLeastLimit, kMostLimit));
  }
  return absl::OkStatus();
}

// Which layers are mixtures, and what lies beyond the layers.
absl::Status CheckLayerRules(const ModelConfig& c, const Architecture& arch) {
  if (arch.moe == MoeRule::kSparseStep && c.has_decoder_sparse_step()) {
    CADRE_CHECK_FIELD(c, decoder_sparse_step, 1, INT32_MAX);
  }
  if (arch.moe == MoeRule::kAfterDense) {
    if (c.has_moe_layer_freq()) CADRE_CHECK_FIELD(c, moe_layer_freq, 1, INT32_MAX);
    if (c.has_first_k_dense_replace()) CADRE_CHECK_FIELD(c, first_k_dense_replace, 0, INT32_MAX);
  }
  if (arch.window == WindowRule::kUpperLayers && c.has_max_window_layers()) {
    CADRE_CHECK_FIELD(c, max_window_layers, 0, INT32_MAX);
  }
  if (c.has_num_nextn_predict_layers()) {
    CADRE_CHECK_FIELD(c, num_nextn_predict_layers, 0, kMaxLayers);
  }
  return absl::OkStatus();
}

absl::StatusOr<AttentionSpec> ResolveLatent(const ModelConfig& c) {
  CADRE_CHECK_FIELD(c, kv_lora_rank, 1, kMaxSize);
  CADRE_CHECK_FIELD(c, qk_nope_head_dim, 1, 4096);
  CADRE_CHECK_FIELD(c, qk_rope_head_dim, 2, 4096);
  CADRE_CHECK_FIELD(c, v_head_dim, 1, 4096);
  if (c.has_q_lora_rank()) CADRE_CHECK_FIELD(c, q_lora_rank, 1, kMaxSize);
  if (c.attention_bias()) {
    return InvalidArgument("attention_bias: true (allowed in {}: false)", c.model_type());
  }
  AttentionSpec a;
  a.heads = a.kv_heads = c.num_attention_heads();
  a.head_dim = int64_t{c.qk_nope_head_dim()} + c.qk_rope_head_dim();
  a.value_dim = c.v_head_dim();
  a.latent = {c.q_lora_rank(), c.kv_lora_rank(), c.qk_nope_head_dim(), c.qk_rope_head_dim()};
  double mscale = LatentLogitScale(c);
  a.scale = mscale / std::sqrt(static_cast<double>(a.head_dim));
  return a;
}

absl::StatusOr<AttentionSpec> ResolveAttention(const ModelConfig& c, const Architecture& arch) {
  if (arch.latent_attention) return ResolveLatent(c);
  AttentionSpec a;
  a.heads = c.num_attention_heads();
  a.kv_heads = c.has_num_key_value_heads() ? c.num_key_value_heads() : a.heads;
  CADRE_RETURN_IF_ERROR(CheckRange("num_key_value_heads", true, a.kv_heads, 1, a.heads));
  CADRE_RETURN_IF_ERROR(
      CheckMultiple("num_attention_heads", a.heads, "num_key_value_heads", a.kv_heads));
  if (!c.has_head_dim()) {
    CADRE_RETURN_IF_ERROR(
        CheckMultiple("hidden_size", c.hidden_size(), "num_attention_heads", a.heads));
  }
  a.head_dim = c.has_head_dim() ? c.head_dim() : c.hidden_size() / a.heads;
  CADRE_RETURN_IF_ERROR(CheckRange("head_dim", true, a.head_dim, 2, 4096));
  a.value_dim = a.head_dim;
  bool all = c.has_attention_bias() ? c.attention_bias() : arch.default_attention_bias;
  a.qkv_bias = (arch.bias == BiasRule::kAll && all) || arch.bias == BiasRule::kQkv ||
               (arch.bias == BiasRule::kQkvConfig && (!c.has_qkv_bias() || c.qkv_bias()));
  a.output_bias = arch.bias == BiasRule::kAll && all;
  if (c.attention_bias() && !a.qkv_bias) {
    return InvalidArgument("attention_bias: true (allowed in {}: false)", c.model_type());
  }
  a.qk_norm = arch.qk_norm;
  if (arch.clip_qkv) a.clip_qkv = c.clip_qkv();
  a.sinks = arch.sinks;
  a.scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  return a;
}

// The window of one layer, 0 for none.
int64_t WindowOf(const ModelConfig& c, const Architecture& arch, int layer) {
  if (arch.window == WindowRule::kNone || !c.has_sliding_window()) return 0;
  if (arch.window == WindowRule::kUpperLayers && !c.use_sliding_window()) return 0;
  if (c.layer_types_size() > 0) {
    return c.layer_types(layer) == "sliding_attention" ? c.sliding_window() : 0;
  }
  switch (arch.window) {
    case WindowRule::kUpperLayers:
      return layer >= c.max_window_layers() ? c.sliding_window() : 0;
    case WindowRule::kAlternating:
      return layer % 2 == 0 ? c.sliding_window() : 0;
    default:
      return c.sliding_window();
  }
}

absl::Status CheckWindows(const ModelConfig& c, const Architecture& arch) {
  if (c.has_sliding_window()) CADRE_CHECK_FIELD(c, sliding_window, 1, INT32_MAX);
  if (c.layer_types_size() == 0) return absl::OkStatus();
  if (c.layer_types_size() != c.num_hidden_layers()) {
    return InvalidArgument("layer_types: {} entries (allowed: num_hidden_layers = {})",
                           c.layer_types_size(), c.num_hidden_layers());
  }
  for (const std::string& type : c.layer_types()) {
    bool sliding = type == "sliding_attention";
    if (type != "full_attention" && !sliding) {
      return InvalidArgument("layer_types: '{}' (allowed: full_attention, sliding_attention)",
                             type);
    }
    if (sliding && (arch.window == WindowRule::kNone || !c.has_sliding_window())) {
      return InvalidArgument("layer_types: sliding_attention without a sliding_window in {}",
                             c.model_type());
    }
  }
  return absl::OkStatus();
}

bool IsMoeLayer(const ModelConfig& c, const Architecture& arch, int layer) {
  switch (arch.moe) {
    case MoeRule::kNone:
      return false;
    case MoeRule::kAllLayers:
      return true;
    case MoeRule::kSparseStep: {
      for (int dense : c.mlp_only_layers()) {
        if (dense == layer) return false;
      }
      int64_t step = c.has_decoder_sparse_step() ? c.decoder_sparse_step() : 1;
      return (layer + 1) % step == 0;
    }
    case MoeRule::kAfterDense: {
      int frequency = c.has_moe_layer_freq() ? c.moe_layer_freq() : 1;
      return layer >= c.first_k_dense_replace() && layer % frequency == 0;
    }
  }
  return false;
}

struct ExpertCount {
  const char* field;
  bool present;
  int64_t value;
};

ExpertCount ExpertsOf(const ModelConfig& c, const Architecture& arch) {
  if (arch.moe == MoeRule::kAfterDense) {
    return {"n_routed_experts", c.has_n_routed_experts(), c.n_routed_experts()};
  }
  bool local = arch.expert_files != ExpertFiles::kMlp;
  // Newer transformers write mixtral's and gpt_oss's count under either name.
  if (local && (c.has_num_local_experts() || !c.has_num_experts())) {
    return {"num_local_experts", c.has_num_local_experts(), c.num_local_experts()};
  }
  return {"num_experts", c.has_num_experts(), c.num_experts()};
}

absl::Status ResolveGroups(const ModelConfig& c, moe::RouterSpec* router) {
  router->scale = c.has_routed_scaling_factor() ? c.routed_scaling_factor() : 1.0;
  std::string method = c.has_topk_method()                             ? c.topk_method()
                       : router->kind == moe::RouterKind::kSigmoidBias ? "noaux_tc"
                       : c.has_n_group()                               ? "group_limited_greedy"
                                                                       : "greedy";
  bool v3 = router->kind == moe::RouterKind::kSigmoidBias;
  const char* scoring = v3 ? "sigmoid" : "softmax";
  if (c.has_scoring_func() && c.scoring_func() != scoring) {
    return InvalidArgument("scoring_func: '{}' (allowed in {}: {})", c.scoring_func(),
                           c.model_type(), scoring);
  }
  if (v3 ? method != "noaux_tc" : method != "greedy" && method != "group_limited_greedy") {
    return InvalidArgument("topk_method: '{}' (allowed in {}: {})", method, c.model_type(),
                           v3 ? "noaux_tc" : "greedy, group_limited_greedy");
  }
  if (!v3 && router->renormalize) {
    return InvalidArgument("norm_topk_prob: true (allowed in {}: false)", c.model_type());
  }
  if (method == "greedy") return absl::OkStatus();
  router->groups = c.has_n_group() ? c.n_group() : 1;
  router->kept_groups = c.has_topk_group() ? c.topk_group() : 1;
  CADRE_RETURN_IF_ERROR(CheckRange("n_group", true, router->groups, 1, router->experts));
  CADRE_RETURN_IF_ERROR(
      CheckMultiple("n_routed_experts", router->experts, "n_group", router->groups));
  CADRE_RETURN_IF_ERROR(CheckRange("topk_group", true, router->kept_groups, 1, router->groups));
  int64_t per_group = router->experts / router->groups;
  if (v3 && per_group < 2) {
    return InvalidArgument("n_group: {} leaves {} expert a group (at least 2: {} / n_group)",
                           router->groups, per_group, router->experts);
  }
  if (router->kept_groups * per_group < router->top_k) {
    return InvalidArgument(
        "num_experts_per_tok: {} of the {} experts in topk_group {} groups of {} (allowed: at "
        "most {})",
        router->top_k, router->kept_groups * per_group, router->kept_groups, per_group,
        router->kept_groups * per_group);
  }
  return absl::OkStatus();
}

absl::StatusOr<MoeSpec> ResolveMoe(const ModelConfig& c, const Architecture& arch) {
  ExpertCount experts = ExpertsOf(c, arch);
  CADRE_RETURN_IF_ERROR(CheckRange(experts.field, experts.present, experts.value, 1, kMaxExperts));
  if (!c.has_num_experts_per_tok() || c.num_experts_per_tok() < 1 ||
      c.num_experts_per_tok() > experts.value) {
    return InvalidArgument("num_experts_per_tok: {} (allowed: 1 to {} = {})",
                           c.num_experts_per_tok(), experts.field, experts.value);
  }
  MoeSpec m;
  m.router = {
      .kind = arch.router,
      .experts = experts.value,
      .top_k = c.num_experts_per_tok(),
      .renormalize = arch.always_renormalize ||
                     (c.has_norm_topk_prob() ? c.norm_topk_prob() : arch.default_renormalize),
      .logit_bias = arch.expert_bias};
  if (arch.moe == MoeRule::kAfterDense) CADRE_RETURN_IF_ERROR(ResolveGroups(c, &m.router));
  bool own_width = arch.moe != MoeRule::kAllLayers;
  if (own_width) {
    CADRE_CHECK_FIELD(c, moe_intermediate_size, 1, kMaxSize);
  } else {
    CADRE_CHECK_FIELD(c, intermediate_size, 1, kMaxSize);
  }
  m.intermediate = own_width ? c.moe_intermediate_size() : c.intermediate_size();
  m.bias = arch.expert_bias;
  m.activation = arch.activation;
  m.limit = c.has_swiglu_limit() ? c.swiglu_limit() : 7.0;
  m.files = arch.expert_files;
  m.shared = arch.shared;
  if (arch.shared == SharedExpert::kGated) {
    CADRE_CHECK_FIELD(c, shared_expert_intermediate_size, 1, kMaxSize);
    m.shared_intermediate = c.shared_expert_intermediate_size();
  } else if (arch.shared == SharedExpert::kPlain) {
    CADRE_RETURN_IF_ERROR(CheckRange("n_shared_experts", true, c.n_shared_experts(), 0, 1024));
    m.shared_intermediate = m.intermediate * c.n_shared_experts();
    if (c.n_shared_experts() == 0) m.shared = SharedExpert::kNone;
  }
  return m;
}

int64_t LayerElements(const DecoderSpec& spec, const LayerSpec& layer) {
  const AttentionSpec& a = layer.attention;
  int64_t width = (a.heads + 2 * a.kv_heads) * a.head_dim + a.heads * a.value_dim;
  int64_t inner = layer.is_moe ? layer.moe.router.experts * layer.moe.intermediate +
                                     layer.moe.shared_intermediate
                               : layer.mlp.intermediate;
  // Each factor is under 2^41 here, so the comparison is made before the product.
  if (width + 3 * inner > kMaxElements / spec.hidden) return kMaxElements + 1;
  return spec.hidden * (width + 3 * inner);
}

absl::Status CheckTotal(const DecoderSpec& spec) {
  int64_t total = 2 * spec.vocab * spec.hidden, experts = 0;
  for (const LayerSpec& layer : spec.layers) {
    experts += layer.is_moe ? layer.moe.router.experts : 0;
    if (experts > kMaxExpertTensors) {
      return InvalidArgument("num_hidden_layers: {} with {} experts each is over {} experts",
                             spec.layers.size(), layer.moe.router.experts, kMaxExpertTensors);
    }
    total += LayerElements(spec, layer);
    if (total > kMaxElements) {
      return InvalidArgument("hidden_size: {} with these layers is over 2^46 weights", spec.hidden);
    }
  }
  return absl::OkStatus();
}

absl::Status ResolveWiring(const ModelConfig& c, DecoderSpec* spec) {
  const bool ladder = c.residual() == "ladder";
  if (c.has_residual() && !ladder && c.residual() != "standard") {
    return InvalidArgument("residual: '{}' (allowed: standard, ladder)", c.residual());
  }
  if (c.ladder_layers_size() > 0 && !ladder) {
    return InvalidArgument("ladder_layers: {} given (allowed with residual: ladder alone)",
                           c.ladder_layers_size());
  }
  if (ladder && c.ladder_layers_size() == 0) {
    for (LayerSpec& layer : spec->layers) layer.wiring = Wiring::kLadder;
  }
  for (const int layer : c.ladder_layers()) {
    CADRE_RETURN_IF_ERROR(
        CheckRange("ladder_layers", true, layer, 0, c.num_hidden_layers() - int64_t{1}));
    spec->layers[static_cast<size_t>(layer)].wiring = Wiring::kLadder;
  }
  return absl::OkStatus();
}

absl::Status ResolveLayers(const ModelConfig& c, const Architecture& arch, DecoderSpec* spec) {
  CADRE_ASSIGN_OR_RETURN(AttentionSpec attention, ResolveAttention(c, arch));
  for (int layer = 0; layer < c.num_hidden_layers(); ++layer) {
    LayerSpec l{.attention = attention, .is_moe = IsMoeLayer(c, arch, layer)};
    l.attention.window = WindowOf(c, arch, layer);
    if (l.is_moe) {
      CADRE_ASSIGN_OR_RETURN(l.moe, ResolveMoe(c, arch));
    } else {
      CADRE_CHECK_FIELD(c, intermediate_size, 1, kMaxSize);
      l.mlp = {c.intermediate_size(), arch.mlp_bias && c.mlp_bias(), arch.activation,
               c.swiglu_limit()};
    }
    spec->layers.push_back(l);
  }
  return ResolveWiring(c, spec);
}

#undef CADRE_CHECK_FIELD

}  // namespace

absl::StatusOr<DecoderSpec> ResolveModelConfig(const ModelConfig& c) {
  CADRE_ASSIGN_OR_RETURN(const Architecture* arch, FindArchitecture(c.model_type()));
  CADRE_RETURN_IF_ERROR(CheckBasics(c));
  CADRE_RETURN_IF_ERROR(CheckWindows(c, *arch));
  CADRE_RETURN_IF_ERROR(CheckLayerRules(c, *arch));
  CADRE_RETURN_IF_ERROR(CheckLimits(c, *arch));
  DecoderSpec spec{
      .model_type = c.model_type(),
      .vocab = c.vocab_size(),
      .hidden = c.hidden_size(),
      .norm_eps = c.has_rms_norm_eps() ? c.rms_norm_eps() : arch->default_norm_eps,
      .tied = c.tie_word_embeddings(),
      .init_stddev = c.has_initializer_range() ? c.initializer_range() : 0.02,
      .max_position = c.has_max_position_embeddings() ? c.max_position_embeddings() : 2048};
  if (!(spec.norm_eps > 0.0 && spec.norm_eps < 1.0)) {
    return InvalidArgument("rms_norm_eps: {} (allowed: above 0, below 1)", spec.norm_eps);
  }
  if (spec.max_position < 1) {
    return InvalidArgument("max_position_embeddings: {} (allowed: 1 and more)", spec.max_position);
  }
  if (!(spec.init_stddev >= 0.0 && spec.init_stddev < 1e3)) {
    return InvalidArgument("initializer_range: {} (allowed: 0 to 1000)", spec.init_stddev);
  }
  CADRE_RETURN_IF_ERROR(ResolveLayers(c, *arch, &spec));
  const AttentionSpec& attention = spec.layers[0].attention;
  int64_t rope_dim = attention.latent.kv_rank > 0 ? attention.latent.rope_dim : attention.head_dim;
  CADRE_ASSIGN_OR_RETURN(spec.rope, ResolveRope(c, *arch, rope_dim));
  CADRE_RETURN_IF_ERROR(CheckTotal(spec));
  return spec;
}

absl::Status ValidateModelConfig(const ModelConfig& config) {
  return ResolveModelConfig(config).status();
}

}  // namespace cadre
