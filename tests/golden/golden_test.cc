// Every architecture against transformers, and proof that each comparison can fail.
#include <gtest/gtest.h>

#include "tests/golden/golden_case.h"

namespace cadre::golden {
namespace {

using config::ModelConfig;

const char* const kNames[] = {
    "llama",     "llama_rope_llama3",   "mistral",   "qwen2", "qwen3",       "mixtral",
    "qwen2_moe", "qwen2_moe_norm_topk", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3",
    "gpt_oss"};

class Golden : public testing::TestWithParam<const char*> {};

void ExpectMatch(const GoldenRun& run) {
  absl::StatusOr<GoldenErrors> errors = RunGolden(run);
  ASSERT_TRUE(errors.ok()) << Message(errors.status());
  EXPECT_LT(errors->logits, 1e-4);
  EXPECT_LT(errors->loss, 1e-5);
  EXPECT_LT(errors->gradients, 1e-3) << errors->worst_gradient;
  EXPECT_GT(errors->gradients_compared, 5);
  EXPECT_EQ(errors->differing_choices, 0) << "of " << errors->choices_compared;
}

TEST_P(Golden, F32) { ExpectMatch({.name = GetParam(), .dtype = DType::kF32, .threads = 2}); }

TEST_P(Golden, F64) { ExpectMatch({.name = GetParam(), .dtype = DType::kF64}); }

TEST_P(Golden, EveryParameterMatters) {
  absl::StatusOr<std::vector<std::string>> names = ParameterNames(GetParam());
  ASSERT_TRUE(names.ok()) << Message(names.status());
  for (const std::string& name : *names) {
    absl::StatusOr<GoldenErrors> errors =
        RunGolden({.name = GetParam(), .backward = false, .scaled_parameter = name});
    ASSERT_TRUE(errors.ok()) << Message(errors.status());
    EXPECT_GT(errors->logits, 1e-4) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, Golden, testing::ValuesIn(kNames),
                         [](const auto& info) { return std::string(info.param); });

struct Mutation {
  const char* name;
  const char* what;
  void (*change)(ModelConfig&);
};

// One a family at least: what sets it apart, taken away.
const Mutation kMutations[] = {
    {"llama", "rope_theta", [](ModelConfig& c) { c.set_rope_theta(20000.0); }},
    {"llama", "rms_norm_eps", [](ModelConfig& c) { c.set_rms_norm_eps(1e-2); }},
    {"llama_rope_llama3", "rope_scaling", [](ModelConfig& c) { c.clear_rope_scaling(); }},
    {"mistral", "sliding_window", [](ModelConfig& c) { c.set_sliding_window(8); }},
    {"qwen2", "rope_theta", [](ModelConfig& c) { c.set_rope_theta(500.0); }},
    {"qwen3", "rms_norm_eps", [](ModelConfig& c) { c.set_rms_norm_eps(1e-2); }},
    {"mixtral", "num_experts_per_tok", [](ModelConfig& c) { c.set_num_experts_per_tok(1); }},
    {"qwen2_moe", "norm_topk_prob", [](ModelConfig& c) { c.set_norm_topk_prob(true); }},
    {"qwen2_moe_norm_topk", "norm_topk_prob", [](ModelConfig& c) { c.set_norm_topk_prob(false); }},
    {"qwen3_moe", "norm_topk_prob", [](ModelConfig& c) { c.set_norm_topk_prob(false); }},
    {"olmoe", "clip_qkv", [](ModelConfig& c) { c.clear_clip_qkv(); }},
    {"deepseek_v2", "topk_group", [](ModelConfig& c) { c.set_topk_group(4); }},
    {"deepseek_v2", "scaling", [](ModelConfig& c) { c.set_routed_scaling_factor(1.0); }},
    {"deepseek_v3", "n_group", [](ModelConfig& c) { c.set_n_group(1); }},
    {"deepseek_v3", "yarn", [](ModelConfig& c) { c.clear_rope_scaling(); }},
    {"deepseek_v3", "mscale",
     [](ModelConfig& c) { c.mutable_rope_scaling()->set_mscale_all_dim(1.0); }},
    {"deepseek_v3", "interleave", [](ModelConfig& c) { c.set_rope_interleave(false); }},
    {"gpt_oss", "layer_types", [](ModelConfig& c) { c.set_layer_types(0, "full_attention"); }},
    {"gpt_oss", "swiglu_limit", [](ModelConfig& c) { c.set_swiglu_limit(0.5); }},
    {"gpt_oss", "yarn", [](ModelConfig& c) { c.clear_rope_scaling(); }},
};

TEST(GoldenMutations, EachShows) {
  for (const Mutation& mutation : kMutations) {
    absl::StatusOr<GoldenErrors> errors =
        RunGolden({.name = mutation.name, .backward = false, .change_config = mutation.change});
    ASSERT_TRUE(errors.ok()) << mutation.name << ": " << Message(errors.status());
    EXPECT_GT(errors->logits, 1e-4) << mutation.name << " without its " << mutation.what;
  }
}

}  // namespace
}  // namespace cadre::golden
