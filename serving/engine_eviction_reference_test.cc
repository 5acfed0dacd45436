// What an engine that evicts answers, against a plain model in double precision.
#include <gtest/gtest.h>

#include "serving/engine_test_fixture.h"
#include "serving/eviction_reference.h"

namespace cadre {
namespace {

constexpr int kVocabulary = 61;
// Weights wide enough that attention prefers some keys by far.
constexpr char kSharpConfig[] =
    R"({"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "max_position_embeddings": 1024, "tie_word_embeddings": false, "initializer_range": 0.4})";

class EvictionReferenceTest : public EngineTest, public testing::WithParamInterface<const char*> {
 protected:
  void SetUp() override {
    Context ctx{.allocator = &allocator_, .threads = 1};
    absl::StatusOr<HfConfig> config = ParseHfConfig(kSharpConfig, "config.json");
    ASSERT_TRUE(config.ok());
    model_ = *CreateModel(ctx, *std::move(config), {.dtype = DType::kF64});
    ctx.parameters = &model_->parameters();
    InitializeParameters(ctx, 3);
    Start({.max_num_batched_tokens = 128, .eviction = {.policy = GetParam()}});
  }

  void ExpectLikeReference(int64_t tokens, int64_t budget, int answer) {
    GenerationRequest request = Request(
        1, tokens, 4, {.temperature = 1, .seed = 5, .max_tokens = answer, .logprobs = kVocabulary});
    // Repeating prompts have keys that tell nothing apart.
    auto prompt = std::make_shared<std::vector<int32_t>>();
    for (int64_t i = 0; i < tokens; ++i) {
      prompt->push_back(static_cast<int32_t>((i * i * 5 + i * 7 + i / 13) % kVocabulary));
    }
    request.prompt = prompt;
    request.kv_budget = budget;
    const std::vector<TokenEvent> events = Run(request);
    ASSERT_EQ(events.size(), static_cast<size_t>(answer));
    EvictionReference reference(*model_, GetParam(), budget);
    EvictionReference::Row expected = reference.Read(*prompt);
    for (size_t t = 0; t < events.size(); ++t) {
      ASSERT_EQ(events[t].top.size(), static_cast<size_t>(kVocabulary));
      for (const TokenLogprob& one : events[t].top) {
        ASSERT_NEAR(one.logprob, expected[static_cast<size_t>(one.token)], 2e-5)
            << "token " << t << " of the answer to " << tokens << " tokens";
      }
      expected = reference.Next(events[t].token);
    }
  }
};

TEST_P(EvictionReferenceTest, PromptsThatLoseKeys) { ExpectLikeReference(300, 60, 40); }

TEST_P(EvictionReferenceTest, AnswersThatLoseKeys) { ExpectLikeReference(50, 60, 60); }

INSTANTIATE_TEST_SUITE_P(Policies, EvictionReferenceTest,
                         testing::Values("streaming_llm", "h2o", "snapkv", "pyramidkv", "tova",
                                         "cake"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace cadre
