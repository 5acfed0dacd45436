#include "model/architecture.h"

namespace cadre {

std::span<const Architecture> Architectures() {
  using moe::RouterKind;
  static constexpr Architecture kRows[] = {
      {.model_type = "llama",
       .class_name = "LlamaForCausalLM",
       .bias = BiasRule::kAll,
       .mlp_bias = true},
      {.model_type = "mistral",
       .class_name = "MistralForCausalLM",
       .window = WindowRule::kAllLayers},
      {.model_type = "qwen2",
       .class_name = "Qwen2ForCausalLM",
       .bias = BiasRule::kQkv,
       .window = WindowRule::kUpperLayers},
      {.model_type = "qwen3",
       .class_name = "Qwen3ForCausalLM",
       .bias = BiasRule::kAll,
       .qk_norm = QkNorm::kHead,
       .window = WindowRule::kUpperLayers},
      {.model_type = "mixtral",
       .class_name = "MixtralForCausalLM",
       .window = WindowRule::kAllLayers,
       .moe = MoeRule::kAllLayers,
       .expert_files = ExpertFiles::kMixtral,
       .always_renormalize = true,
       .default_norm_eps = 1e-5,
       .default_rope_theta = 1e6},
      {.model_type = "qwen2_moe",
       .class_name = "Qwen2MoeForCausalLM",
       .bias = BiasRule::kQkvConfig,
       .window = WindowRule::kUpperLayers,
       .moe = MoeRule::kSparseStep,
       .shared = SharedExpert::kGated},
      {.model_type = "qwen3_moe",
       .class_name = "Qwen3MoeForCausalLM",
       .bias = BiasRule::kAll,
       .qk_norm = QkNorm::kHead,
       .window = WindowRule::kUpperLayers,
       .moe = MoeRule::kSparseStep},
      {.model_type = "olmoe",
       .class_name = "OlmoeForCausalLM",
       .bias = BiasRule::kAll,
       .qk_norm = QkNorm::kProjection,
       .clip_qkv = true,
       .moe = MoeRule::kAllLayers,
       .default_norm_eps = 1e-5},
      {.model_type = "deepseek_v2",
       .class_name = "DeepseekV2ForCausalLM",
       .latent_attention = true,
       .interleaved_rope = true,
       .moe = MoeRule::kAfterDense,
       .router = RouterKind::kGrouped,
       .shared = SharedExpert::kPlain},
      {.model_type = "deepseek_v3",
       .class_name = "DeepseekV3ForCausalLM",
       .latent_attention = true,
       .interleaved_rope = true,
       .moe = MoeRule::kAfterDense,
       .router = RouterKind::kSigmoidBias,
       .default_renormalize = true,
       .shared = SharedExpert::kPlain},
      {.model_type = "gpt_oss",
       .class_name = "GptOssForCausalLM",
       .bias = BiasRule::kAll,
       .default_attention_bias = true,
       .window = WindowRule::kAlternating,
       .sinks = true,
       .moe = MoeRule::kAllLayers,
       .expert_files = ExpertFiles::kFused,
       .router = RouterKind::kSelectedSoftmax,
       .expert_bias = true,
       .activation = MlpActivation::kClampedSwiGlu,
       .default_norm_eps = 1e-5,
       .default_rope_theta = 150000.0},
  };
  return kRows;
}

absl::StatusOr<const Architecture*> FindArchitecture(const std::string& model_type) {
  std::string known;
  for (const Architecture& row : Architectures()) {
    if (row.model_type == model_type) return &row;
    if (!known.empty()) known += ", ";
    known += row.model_type;
  }
  return InvalidArgument("model_type: unknown architecture '{}' (known: {})", model_type, known);
}

}  // namespace cadre
