// Requests whose KV cache is kept within a budget: what they get whatever else runs, and what is
// refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "serving/engine_test_fixture.h"

namespace cadre {
namespace {

constexpr const char* kPolicies[] = {"streaming_llm", "h2o", "snapkv", "pyramidkv", "tova", "cake"};
constexpr char kLongConfig[] =
    R"({"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "max_position_embeddings": 1024, "tie_word_embeddings": false})";

class EvictionTest : public EngineTest {
 protected:
  void SetUp() override { Load(DType::kF32); }
  void Load(DType dtype) {
    engine_.reset();
    Context ctx{.allocator = &allocator_, .threads = 1};
    absl::StatusOr<HfConfig> config = ParseHfConfig(kLongConfig, "config.json");
    ASSERT_TRUE(config.ok());
    model_ = *CreateModel(ctx, *std::move(config), {.dtype = dtype});
    ctx.parameters = &model_->parameters();
    InitializeParameters(ctx, 3);
    Start(Options());
  }
  static EngineOptions Options(const std::string& policy = "cake") {
    return {.max_num_batched_tokens = 128, .eviction = {.policy = policy}};
  }
  static GenerationRequest Long(uint64_t id, int64_t tokens, int answer) {
    return Request(id, tokens, static_cast<int32_t>(id),
                   {.temperature = 1, .seed = 5, .max_tokens = answer, .logprobs = 0});
  }
  static GenerationRequest Evicting(GenerationRequest request, const std::string& policy,
                                    int64_t budget) {
    request.kv_eviction = policy;
    request.kv_budget = budget;
    return request;
  }
  static void ExpectSame(const std::vector<TokenEvent>& a, const std::vector<TokenEvent>& b,
                         size_t count) {
    ASSERT_GE(a.size(), count);
    ASSERT_GE(b.size(), count);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(a[i].token, b[i].token) << i;
      EXPECT_EQ(a[i].logprob, b[i].logprob) << i;
    }
  }
};

class EachPolicy : public EvictionTest, public testing::WithParamInterface<const char*> {};

// Keys leave after their layer has read them all: the prompt's own bits are those without eviction.
TEST_P(EachPolicy, ThePromptIsReadWhole) {
  for (const int64_t tokens : {600, 257, 100}) {
    const std::vector<TokenEvent> full = Run(Long(1, tokens, 8));
    const std::vector<TokenEvent> kept = Run(Evicting(Long(1, tokens, 8), GetParam(), 60));
    ASSERT_NO_FATAL_FAILURE(ExpectSame(full, kept, 1));
    EXPECT_EQ(Tokens(kept).size(), 8u);
    EXPECT_NE(full.back().logprob, kept.back().logprob) << "nothing was evicted";
  }
}

TEST_P(EachPolicy, RunsInEveryType) {
  for (const DType dtype : {DType::kF64, DType::kBF16}) {
    Load(dtype);
    const std::vector<TokenEvent> full = Run(Long(1, 300, 8));
    ASSERT_NO_FATAL_FAILURE(ExpectSame(full, Run(Evicting(Long(1, 300, 8), GetParam(), 60)), 1));
  }
}

// Until the first key leaves, the answer's are, too.
TEST_P(EachPolicy, AnAnswerWithinTheBudgetHasTheBitsOfAFullCache) {
  const std::vector<TokenEvent> full = Run(Long(1, 50, 40));
  const std::vector<TokenEvent> kept = Run(Evicting(Long(1, 50, 40), GetParam(), 70));
  ASSERT_NO_FATAL_FAILURE(ExpectSame(full, kept, 20));
  const bool evicts = std::string(GetParam()) != "snapkv" && std::string(GetParam()) != "pyramidkv";
  EXPECT_EQ(full.back().logprob == kept.back().logprob, !evicts);
}

TEST_P(EachPolicy, WhatElseRunsAndWhoGivesWayChangesNoBit) {
  // The first one grows and pushes the others out, in the middle of prompts and of answers.
  std::vector<GenerationRequest> requests = {Long(1, 40, 500)};
  for (uint64_t id = 2; id <= 8; ++id) {
    requests.push_back(Evicting(Long(id, 90 + 60 * static_cast<int64_t>(id), 60), GetParam(), 64));
  }
  std::vector<std::vector<TokenEvent>> alone;
  for (const GenerationRequest& request : requests) alone.push_back(Run(request));
  std::vector<ops::KvLayout> layouts;
  for (const LayerSpec& layer : model_->spec().layers) {
    layouts.push_back(KvLayoutOf(layer.attention, model_->dtype(), 16));
  }
  EngineOptions options = Options();
  options.growth_reserve_tokens = 0;
  options.max_num_batched_tokens = 24;
  options.kv_cache_memory_bytes = static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts)) * 44;
  Start(options);
  auto sink = std::make_shared<Sink>();
  for (const GenerationRequest& request : requests) {
    const absl::Status status = engine_->Submit({request}, sink);
    ASSERT_TRUE(status.ok()) << Message(status);
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    const std::vector<TokenEvent> together = sink->WaitForEnd(requests[i].id);
    ASSERT_NO_FATAL_FAILURE(ExpectSame(alone[i], together, 60)) << i;
  }
  EXPECT_GT(engine_->Stats().num_preemptions, 0);
  EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
}

TEST_P(EachPolicy, ACachedPrefixSavesReadingAndChangesNoBit) {
  const GenerationRequest request = Evicting(Long(1, 600, 20), GetParam(), 60);
  const std::vector<TokenEvent> cold = Run(request);
  Run(Long(1, 600, 2));  // leaves its prefix to be found
  GenerationRequest again = request;
  again.id = 7;
  const std::vector<TokenEvent> warm = Run(again);
  ASSERT_NO_FATAL_FAILURE(ExpectSame(cold, warm, 20));
  const std::string policy = GetParam();
  // Who looks at all queries computes them all, and unrotated keys are nobody else's. The window of
  // 32 queries is computed anew; of 568 tokens 35 blocks are whole.
  const bool shares = policy != "h2o" && policy != "streaming_llm";
  EXPECT_EQ(warm.front().cached_tokens, shares ? (policy == "tova" ? 592 : 560) : 0);
  EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
}

INSTANTIATE_TEST_SUITE_P(Policies, EachPolicy, testing::ValuesIn(kPolicies),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(EvictionTest, ALongPromptFitsACacheThatHoldsLittleMoreThanItsBudget) {
  std::vector<ops::KvLayout> layouts;
  for (const LayerSpec& layer : model_->spec().layers) {
    layouts.push_back(KvLayoutOf(layer.attention, model_->dtype(), 16));
  }
  EngineOptions options = Options();
  // 960 tokens are 60 blocks of all layers, or 60 units of one: 20 blocks.
  options.kv_cache_memory_bytes = static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts)) * 26;
  Start(options);
  EXPECT_EQ(Refusal(Long(1, 960, 10)), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Tokens(Run(Evicting(Long(1, 960, 10), "cake", 64))).size(), 10u);
}

TEST_F(EvictionTest, ACancelledOneGivesEverythingBack) {
  auto sink = std::make_shared<Sink>();
  sink->Hold(true);
  ASSERT_TRUE(engine_->Submit({Evicting(Long(1, 600, 100), "cake", 60)}, sink).ok());
  sink->WaitForEvents(1, 1);
  EXPECT_GT(engine_->Stats().kv_cache_usage, 0);
  engine_->Cancel(1);
  sink->Hold(false);
  sink->WaitForEnd(1);
  EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
}

TEST_F(EvictionTest, WhereNothingCanLeaveARequestRunsLikeAnyOther) {
  EngineOptions options = Options("h2o");
  options.eviction.budget = 900;
  Start(options);
  std::vector<GenerationRequest> choices = {Long(1, 100, 16), Long(2, 100, 16)};
  choices[1].prompt = choices[0].prompt;
  choices[1].sampling.choice = 1;
  auto sink = std::make_shared<Sink>();
  const absl::Status status = engine_->Submit(choices, sink);
  ASSERT_TRUE(status.ok()) << Message(status);
  for (const uint64_t id : {1, 2}) EXPECT_EQ(Tokens(sink->WaitForEnd(id)).size(), 16u);
  options.eviction.budget = 0;
  options.speculation.method = SpeculationMethod::kNgram;
  Start(options);
  EXPECT_EQ(Tokens(Run(Evicting(Long(3, 100, 16), "h2o", 900))).size(), 16u);
}

TEST_F(EvictionTest, RefusesWhatDoesNotGoTogether) {
  const auto refusal = [&](GenerationRequest request) {
    return std::string(Message(engine_->Submit({std::move(request)}, std::make_shared<Sink>())));
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "cake", 20)),
              HasSubstr("kv_budget: 20, at least 33"));
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "lru", 64)), HasSubstr("kv_eviction: 'lru'"));
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "cake", 0)), HasSubstr("no kv_budget is given"));
  GenerationRequest choice = Evicting(Long(1, 100, 5), "cake", 40);
  choice.sampling.choice = 1;
  EXPECT_THAT(refusal(choice), HasSubstr("n: more than one choice"));
  GenerationRequest scored = Evicting(Long(1, 100, 5), "cake", 40);
  scored.sampling.prompt_logprobs = 1;
  EXPECT_THAT(refusal(scored), HasSubstr("not together with kv_budget"));

  EngineOptions bounded = Options();
  bounded.eviction.budget = 80;
  bounded.eviction.least_budget = 50;
  bounded.eviction.most_budget = 100;
  Start(bounded);
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "", 49)), HasSubstr("at least 50"));
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "", 101)), HasSubstr("at most 100"));
  // The deployment's own budget holds for those that name none.
  const std::vector<TokenEvent> own = Run(Long(1, 300, 20));
  ASSERT_NO_FATAL_FAILURE(ExpectSame(own, Run(Evicting(Long(2, 300, 20), "cake", 80)), 0));
  const std::vector<TokenEvent> named = Run(Evicting(Long(1, 300, 20), "cake", 80));
  ASSERT_NO_FATAL_FAILURE(ExpectSame(own, named, 20));

  bounded.eviction.budget = 20;
  EXPECT_THAT(Message(Engine::Create(*model_, bounded).status()),
              HasSubstr("kv_eviction.budget: 20, at least 50"));
  bounded.eviction.most_budget = 49;
  EXPECT_THAT(Message(Engine::Create(*model_, bounded).status()),
              HasSubstr("kv_eviction.max_budget: 49, under"));

  EngineOptions guessing = Options();
  guessing.speculation.method = SpeculationMethod::kNgram;
  Start(guessing);
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "cake", 40)), HasSubstr("speculation"));
  guessing.eviction.budget = 40;
  EXPECT_THAT(Message(Engine::Create(*model_, guessing).status()), HasSubstr("speculation"));
  Start({});
  EXPECT_THAT(refusal(Evicting(Long(1, 100, 5), "", 40)), HasSubstr("evicts nothing"));
}

}  // namespace
}  // namespace cadre
