// Eviction with the kinds of keys and values that there are: in codes, latent, of a mixture.
#include <gtest/gtest.h>

#include "serving/engine_test_fixture.h"

namespace cadre {
namespace {

constexpr char kShape[] =
    R"("vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
  "num_attention_heads": 4, "max_position_embeddings": 1024, "tie_word_embeddings": false,
  "initializer_range": 0.2, )";

struct Case {
  const char* name;
  const char* config;  // beside kShape
  ops::KvQuantization quantization;
};

constexpr char kLlama[] = R"("model_type": "llama", "num_key_value_heads": 2, "head_dim": 32)";
constexpr char kMixture[] =
    R"("model_type": "qwen3_moe", "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4,
  "num_experts_per_tok": 2, "moe_intermediate_size": 24)";
constexpr char kLatent[] =
    R"("model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 24,
  "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
  "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1)";

class EvictionOver : public EngineTest, public testing::WithParamInterface<Case> {
 protected:
  void SetUp() override {
    Context ctx{.allocator = &allocator_, .threads = 1};
    const std::string config = std::string("{") + kShape + GetParam().config + "}";
    absl::StatusOr<HfConfig> parsed = ParseHfConfig(config, "config.json");
    ASSERT_TRUE(parsed.ok()) << Message(parsed.status());
    model_ = *CreateModel(ctx, *std::move(parsed), {.dtype = DType::kBF16});
    ctx.parameters = &model_->parameters();
    InitializeParameters(ctx, 3);
    Start(Options());
  }
  static EngineOptions Options() {
    return {.max_num_batched_tokens = 128,
            .kv_quantization = GetParam().quantization,
            .eviction = {.policy = "cake"}};
  }
  static GenerationRequest Long(uint64_t id, int64_t tokens, const char* policy) {
    GenerationRequest request =
        Request(id, tokens, static_cast<int32_t>(id),
                {.temperature = 1, .seed = id, .max_tokens = 30, .logprobs = 0});
    if (policy == nullptr) return request;
    request.kv_eviction = policy;
    request.kv_budget = 60;
    return request;
  }
  static void ExpectSame(const std::vector<TokenEvent>& a, const std::vector<TokenEvent>& b) {
    ASSERT_EQ(Tokens(a), Tokens(b));
    for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].logprob, b[i].logprob) << i;
  }
};

TEST_P(EvictionOver, ThePromptIsReadWholeAndNobodyElseChangesABit) {
  for (const char* policy : {"cake", "snapkv", "pyramidkv", "h2o", "tova"}) {
    Start(Options());
    std::map<uint64_t, std::vector<TokenEvent>> alone;
    for (uint64_t id = 1; id <= 5; ++id) {
      const int64_t tokens = 100 + 60 * static_cast<int64_t>(id);
      const std::vector<TokenEvent> full = Run(Long(id, tokens, nullptr));
      alone[id] = Run(Long(id, tokens, policy));
      ASSERT_EQ(alone[id].size(), 30u);
      EXPECT_EQ(alone[id][0].token, full[0].token) << policy;
      EXPECT_EQ(alone[id][0].logprob, full[0].logprob) << policy;
      EXPECT_NE(alone[id].back().logprob, full.back().logprob) << "nothing was evicted";
    }
    EngineOptions options = Options();
    options.growth_reserve_tokens = 0;
    options.max_num_batched_tokens = 24;
    // Blocks for about two of them.
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model_->spec().layers) {
      layouts.push_back(
          KvLayoutOf(layer.attention, model_->dtype(), kBlock, GetParam().quantization));
    }
    options.kv_cache_memory_bytes = static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts)) * 44;
    Start(options);
    auto sink = std::make_shared<Sink>();
    for (uint64_t id = 1; id <= 5; ++id) {
      const GenerationRequest request = Long(id, 100 + 60 * static_cast<int64_t>(id), policy);
      const absl::Status status = engine_->Submit({request}, sink);
      ASSERT_TRUE(status.ok()) << Message(status);
    }
    for (uint64_t id = 1; id <= 5; ++id) {
      ASSERT_NO_FATAL_FAILURE(ExpectSame(sink->WaitForEnd(id), alone[id])) << policy;
    }
    EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
  }
}

constexpr ops::KvQuantization kNone = ops::KvQuantization::kNone,
                              kInt8 = ops::KvQuantization::kInt8,
                              kInt4 = ops::KvQuantization::kInt4;
INSTANTIATE_TEST_SUITE_P(
    Models, EvictionOver,
    testing::Values(Case{"LlamaInt8", kLlama, kInt8}, Case{"LlamaInt4", kLlama, kInt4},
                    Case{"Mixture", kMixture, kNone}, Case{"MixtureInt8", kMixture, kInt8},
                    Case{"Latent", kLatent, kNone}, Case{"LatentInt8", kLatent, kInt8}),
    [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace cadre
