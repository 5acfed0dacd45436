#include "model/decoder_spec.h"

#include <gtest/gtest.h>

#include <limits>

#include "proto/model_config.pb.h"

namespace cadre {
namespace {

using config::ModelConfig;

ModelConfig Basic(const std::string& type) {
  ModelConfig c;
  c.set_model_type(type);
  c.set_vocab_size(96);
  c.set_hidden_size(32);
  c.set_intermediate_size(48);
  c.set_num_hidden_layers(4);
  c.set_num_attention_heads(4);
  c.set_num_key_value_heads(2);
  c.set_num_experts(8);
  c.set_num_local_experts(8);
  c.set_num_experts_per_tok(3);
  c.set_moe_intermediate_size(16);
  c.set_shared_expert_intermediate_size(16);
  c.set_n_routed_experts(8);
  c.set_n_shared_experts(1);
  c.set_kv_lora_rank(16);
  c.set_qk_nope_head_dim(8);
  c.set_qk_rope_head_dim(8);
  c.set_v_head_dim(12);
  return c;
}

TEST(DecoderSpec, EveryFamilyResolves) {
  for (const Architecture& row : Architectures()) {
    absl::StatusOr<DecoderSpec> spec = ResolveModelConfig(Basic(std::string(row.model_type)));
    ASSERT_TRUE(spec.ok()) << row.model_type << ": " << Message(spec.status());
    EXPECT_EQ(spec->layers.size(), 4u);
    EXPECT_EQ(spec->layers[3].is_moe, row.moe != MoeRule::kNone) << row.model_type;
  }
}

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

config::RopeScaling* Yarn(ModelConfig& c) {
  config::RopeScaling* scaling = c.mutable_rope_scaling();
  scaling->set_rope_type("yarn");
  scaling->set_factor(4);
  scaling->set_original_max_position_embeddings(128);
  return scaling;
}

struct BadCase {
  const char* type;
  void (*change)(ModelConfig&);
  const char* message;  // a part of it
};

const BadCase kBad[] = {
    {"gpt5", [](ModelConfig&) {}, "model_type: unknown architecture 'gpt5' (known: llama, mistral"},
    {"llama", [](ModelConfig& c) { c.clear_vocab_size(); }, "vocab_size: missing"},
    {"llama", [](ModelConfig& c) { c.set_hidden_size(0); }, "hidden_size: 0 (allowed: 1 to"},
    {"llama", [](ModelConfig& c) { c.set_hidden_size(-5); }, "hidden_size: -5"},
    {"llama", [](ModelConfig& c) { c.set_num_attention_heads(3); },
     "num_attention_heads: 3 is no multiple of num_key_value_heads 2 (3 = 2 x 1 + 1)"},
    {"llama", [](ModelConfig& c) { c.set_hidden_size(34); },
     "hidden_size: 34 is no multiple of num_attention_heads 4 (34 = 4 x 8 + 2)"},
    {"llama", [](ModelConfig& c) { c.set_head_dim(7); }, "head_dim: 7 (allowed: even"},
    {"llama", [](ModelConfig& c) { c.set_num_key_value_heads(8); },
     "num_key_value_heads: 8 (allowed: 1 to 4)"},
    {"llama", [](ModelConfig& c) { c.set_hidden_act("gelu"); }, "hidden_act: 'gelu'"},
    {"llama", [](ModelConfig& c) { c.add_eos_token_id(96); }, "eos_token_id: 96 (allowed: 0 to"},
    {"llama", [](ModelConfig& c) { c.set_rms_norm_eps(0); }, "rms_norm_eps: 0"},
    {"llama", [](ModelConfig& c) { c.mutable_rope_scaling()->set_rope_type("dynamic"); },
     "rope_scaling.rope_type: 'dynamic' (allowed: default, linear, llama3, yarn)"},
    {"llama",
     [](ModelConfig& c) {
       c.mutable_rope_scaling()->set_rope_type("linear");
       c.mutable_rope_scaling()->set_factor(-1);
     },
     "rope_scaling.factor: -1"},
    {"llama", [](ModelConfig& c) { c.add_layer_types("full_attention"); },
     "layer_types: 1 entries (allowed: num_hidden_layers = 4)"},
    {"llama",
     [](ModelConfig& c) {
       c.set_hidden_size(1 << 24);
       c.set_intermediate_size(1 << 24);
       c.set_head_dim(8);
     },
     "over 2^46 weights"},
    {"mixtral", [](ModelConfig& c) { c.set_num_experts_per_tok(9); },
     "num_experts_per_tok: 9 (allowed: 1 to num_local_experts = 8)"},
    {"qwen3_moe", [](ModelConfig& c) { c.clear_num_experts(); }, "num_experts: missing"},
    {"qwen3_moe", [](ModelConfig& c) { c.clear_moe_intermediate_size(); },
     "moe_intermediate_size: missing"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_n_group(3); },
     "n_routed_experts: 8 is no multiple of n_group 3 (8 = 3 x 2 + 2)"},
    {"deepseek_v3",
     [](ModelConfig& c) {
       c.set_n_group(4);
       c.set_topk_group(1);
     },
     "num_experts_per_tok: 3 of the 2 experts in topk_group 1 groups of 2 (allowed: at most 2)"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_scoring_func("softmax"); },
     "scoring_func: 'softmax' (allowed in deepseek_v3: sigmoid)"},
    {"deepseek_v2", [](ModelConfig& c) { c.set_norm_topk_prob(true); }, "norm_topk_prob: true"},
    {"deepseek_v2", [](ModelConfig& c) { c.set_qk_rope_head_dim(7); }, "qk_rope_head_dim: 7"},
    // Divisors.
    {"qwen3_moe", [](ModelConfig& c) { c.set_decoder_sparse_step(0); },
     "decoder_sparse_step: 0 (allowed: 1 to"},
    {"qwen2_moe", [](ModelConfig& c) { c.set_decoder_sparse_step(-1); }, "decoder_sparse_step: -1"},
    {"deepseek_v2", [](ModelConfig& c) { c.set_moe_layer_freq(0); },
     "moe_layer_freq: 0 (allowed: 1 to"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_moe_layer_freq(-2); }, "moe_layer_freq: -2"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_first_k_dense_replace(-1); },
     "first_k_dense_replace: -1"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_num_nextn_predict_layers(2147483647); },
     "num_nextn_predict_layers: 2147483647 (allowed: 0 to 4096)"},
    {"qwen2", [](ModelConfig& c) { c.set_max_window_layers(-1); }, "max_window_layers: -1"},
    {"llama", [](ModelConfig& c) { c.set_num_attention_heads(0); }, "num_attention_heads: 0"},
    {"llama", [](ModelConfig& c) { c.set_num_key_value_heads(0); },
     "num_key_value_heads: 0 (allowed: 1 to 4)"},
    {"llama", [](ModelConfig& c) { c.set_num_key_value_heads(-1); }, "num_key_value_heads: -1"},
    {"llama", [](ModelConfig& c) { c.set_head_dim(0); }, "head_dim: 0 (allowed: 2 to"},
    {"llama", [](ModelConfig& c) { c.set_head_dim(-8); }, "head_dim: -8"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_n_group(0); }, "n_group: 0 (allowed: 1 to 8)"},
    {"deepseek_v2", [](ModelConfig& c) { c.set_n_group(-1); }, "n_group: -1"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_topk_group(0); }, "topk_group: 0"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_qk_nope_head_dim(0); }, "qk_nope_head_dim: 0"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_n_routed_experts(0); }, "n_routed_experts: 0"},
    {"gpt_oss",
     [](ModelConfig& c) {
       c.mutable_rope_scaling()->set_rope_type("yarn");
       c.mutable_rope_scaling()->set_original_max_position_embeddings(0);
     },
     "rope_scaling.factor:"},
    {"mistral", [](ModelConfig& c) { c.set_sliding_window(0); }, "sliding_window: 0"},
    // Numbers that scale or clamp.
    {"olmoe", [](ModelConfig& c) { c.set_clip_qkv(0); }, "clip_qkv: 0 (allowed: 1e-06 to 1000000"},
    {"olmoe", [](ModelConfig& c) { c.set_clip_qkv(-8); }, "clip_qkv: -8"},
    {"olmoe", [](ModelConfig& c) { c.set_clip_qkv(kNaN); }, "clip_qkv: nan"},
    {"olmoe", [](ModelConfig& c) { c.set_clip_qkv(1e-300); }, "clip_qkv: 1e-300"},
    {"gpt_oss", [](ModelConfig& c) { c.set_swiglu_limit(0); }, "swiglu_limit: 0 (allowed: 1e-06"},
    {"gpt_oss", [](ModelConfig& c) { c.set_swiglu_limit(-7); }, "swiglu_limit: -7"},
    {"gpt_oss", [](ModelConfig& c) { c.set_swiglu_limit(kNaN); }, "swiglu_limit: nan"},
    {"gpt_oss", [](ModelConfig& c) { c.set_swiglu_limit(1e300); }, "swiglu_limit: 1e+300"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_routed_scaling_factor(kNaN); },
     "routed_scaling_factor: nan"},
    {"deepseek_v3", [](ModelConfig& c) { c.set_routed_scaling_factor(-2.5); },
     "routed_scaling_factor: -2.5"},
    {"llama", [](ModelConfig& c) { Yarn(c)->set_attention_factor(0); },
     "rope_scaling.attention_factor: 0 (allowed: above 0 to 1000"},
    {"llama", [](ModelConfig& c) { Yarn(c)->set_attention_factor(-1); },
     "rope_scaling.attention_factor: -1"},
    {"llama", [](ModelConfig& c) { Yarn(c)->set_attention_factor(kNaN); },
     "rope_scaling.attention_factor: nan"},
    {"llama", [](ModelConfig& c) { Yarn(c)->set_attention_factor(1e6); },
     "rope_scaling.attention_factor: 1000000"},
    {"deepseek_v3", [](ModelConfig& c) { Yarn(c)->set_mscale(kNaN); }, "rope_scaling.mscale: nan"},
    {"deepseek_v3", [](ModelConfig& c) { Yarn(c)->set_mscale_all_dim(-1); },
     "rope_scaling.mscale_all_dim: -1 (allowed: 0 to 1000"},
    {"qwen3_moe",
     [](ModelConfig& c) {
       c.set_num_hidden_layers(4096);
       c.set_num_experts(65536);
     },
     "experts"},
};

TEST(DecoderSpec, ImpossibleConfigsNameTheField) {
  for (const BadCase& bad : kBad) {
    ModelConfig c = Basic(bad.type);
    bad.change(c);
    absl::Status status = ValidateModelConfig(c);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_NE(Message(status).find(bad.message), std::string::npos)
        << Message(status) << "\nwanted: " << bad.message;
  }
}

std::vector<LayerSpec> Resolved(const ModelConfig& c) {
  absl::StatusOr<DecoderSpec> spec = ResolveModelConfig(c);
  EXPECT_TRUE(spec.ok()) << Message(spec.status());
  return spec.ok() ? spec->layers : std::vector<LayerSpec>();
}

std::vector<int64_t> Windows(const ModelConfig& c) {
  std::vector<int64_t> windows;
  for (const LayerSpec& layer : Resolved(c)) {
    windows.push_back(layer.attention.window);
  }
  return windows;
}

TEST(DecoderSpec, Windows) {
  using V = std::vector<int64_t>;
  ModelConfig mistral = Basic("mistral");
  EXPECT_EQ(Windows(mistral), V({0, 0, 0, 0}));
  mistral.set_sliding_window(7);
  EXPECT_EQ(Windows(mistral), V({7, 7, 7, 7}));
  ModelConfig qwen = Basic("qwen2");
  qwen.set_sliding_window(7);
  qwen.set_max_window_layers(2);
  EXPECT_EQ(Windows(qwen), V({0, 0, 0, 0}));
  qwen.set_use_sliding_window(true);
  EXPECT_EQ(Windows(qwen), V({0, 0, 7, 7}));
  ModelConfig oss = Basic("gpt_oss");
  oss.set_sliding_window(7);
  EXPECT_EQ(Windows(oss), V({7, 0, 7, 0}));
  for (const char* type : {"full", "full", "sliding", "full"}) {
    oss.add_layer_types(std::string(type) + "_attention");
  }
  EXPECT_EQ(Windows(oss), V({0, 0, 7, 0}));
}

TEST(DecoderSpec, WhichLayersAreMixtures) {
  auto moe = [](const ModelConfig& c) {
    std::string text;
    for (const LayerSpec& layer : Resolved(c)) text += layer.is_moe ? 'm' : 'd';
    return text;
  };
  ModelConfig qwen = Basic("qwen3_moe");
  EXPECT_EQ(moe(qwen), "mmmm");
  qwen.set_decoder_sparse_step(2);
  EXPECT_EQ(moe(qwen), "dmdm");
  qwen.add_mlp_only_layers(1);
  EXPECT_EQ(moe(qwen), "dddm");
  ModelConfig deepseek = Basic("deepseek_v2");
  deepseek.set_first_k_dense_replace(1);
  EXPECT_EQ(moe(deepseek), "dmmm");
  deepseek.set_moe_layer_freq(2);
  EXPECT_EQ(moe(deepseek), "ddmd");
}

TEST(DecoderSpec, LadderLayers) {
  ModelConfig c = Basic("llama");
  const auto wirings = [&] {
    std::vector<Wiring> all;
    const auto spec = ResolveModelConfig(c);
    for (const LayerSpec& layer : spec->layers) all.push_back(layer.wiring);
    return all;
  };
  const Wiring standard = Wiring::kStandard, ladder = Wiring::kLadder;
  EXPECT_EQ(wirings(), std::vector<Wiring>(4, standard));
  c.set_residual("ladder");
  EXPECT_EQ(wirings(), std::vector<Wiring>(4, ladder));
  c.add_ladder_layers(2);
  c.add_ladder_layers(3);
  EXPECT_EQ(wirings(), (std::vector<Wiring>{standard, standard, ladder, ladder}));
  c.add_ladder_layers(4);
  EXPECT_EQ(Message(ValidateModelConfig(c)), "ladder_layers: 4 (allowed: 0 to 3)");
  c.set_residual("standard");
  EXPECT_EQ(Message(ValidateModelConfig(c)),
            "ladder_layers: 3 given (allowed with residual: ladder alone)");
  c.set_residual("rungs");
  EXPECT_EQ(Message(ValidateModelConfig(c)), "residual: 'rungs' (allowed: standard, ladder)");
}

}  // namespace
}  // namespace cadre
