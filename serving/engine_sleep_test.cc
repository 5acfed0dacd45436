// An engine that is sent to sleep and woken, from other threads.
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "serving/engine_test_fixture.h"

namespace cadre {
namespace {

// Sleep's or Wake's answer.
template <typename T>
struct Answer {
  std::function<void(T)> Take() {
    return [state = state](T value) {
      CADRE_CHECK(!state->ready.exchange(true), "answered twice");
      state->value.set_value(std::move(value));
    };
  }
  T Wait() { return state->value.get_future().get(); }

  struct State {
    std::promise<T> value;
    std::atomic<bool> ready = false;
  };
  std::shared_ptr<State> state = std::make_shared<State>();
};

class EngineSleepTest : public EngineTest {
 protected:
  absl::Status Sleep(int level) {
    Answer<absl::Status> answer;
    engine_->Sleep(level, answer.Take());
    return answer.Wait();
  }
  absl::StatusOr<int64_t> Wake() {
    Answer<absl::StatusOr<int64_t>> answer;
    engine_->Wake(answer.Take());
    return answer.Wait();
  }
};

TEST_F(EngineSleepTest, GivesUpTheCacheAndWakesWithTheSameTokens) {
  const GenerationRequest request = Request(1, 40, 1, {.max_tokens = 5, .logprobs = 0});
  const std::vector<TokenEvent> before = Run(request);
  EXPECT_EQ(Run(request)[0].cached_tokens, 32);
  EXPECT_TRUE(Sleep(1).ok());
  EXPECT_TRUE(Sleep(1).ok()) << "it does already";
  EXPECT_FALSE(engine_->Health().ready);
  EXPECT_EQ(engine_->Health().reason, "asleep at level 1");
  EXPECT_EQ(Refusal(request), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Info().weight_version, before[0].weight_version);
  EXPECT_EQ(*Wake(), before[0].weight_version);
  EXPECT_EQ(*Wake(), before[0].weight_version) << "it is awake already";
  EXPECT_TRUE(engine_->Health().ready);
  const std::vector<TokenEvent> after = Run(request);
  EXPECT_EQ(after[0].cached_tokens, 0);
  EXPECT_EQ(Tokens(after), Tokens(before));
  EXPECT_EQ(after[4].logprob, before[4].logprob);
  EXPECT_EQ(Sleep(3).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Sleep(2).code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(engine_->Health().ready);
}

TEST_F(EngineSleepTest, GivesUpWhatTheTiersHaveToo) {
  for (const auto& [host, disk] : {std::pair(1 << 20, 0), std::pair(0, 1 << 20)}) {
    Start({.kv_cache_memory_bytes = BytesOfBlocks(6),
           .kv_tiers = {.host_bytes = host, .disk_bytes = disk, .disk_path = "/tmp"}});
    const GenerationRequest request = Request(1, 64, 1, {.max_tokens = 5, .logprobs = 0});
    const std::vector<TokenEvent> before = Run(request);
    // Its prefix leaves the cache for the tier.
    Run(Request(2, 80, 2, {.max_tokens = 4}));
    EXPECT_TRUE(Sleep(1).ok());
    EXPECT_TRUE(Wake().ok());
    const std::vector<TokenEvent> after = Run(request);
    EXPECT_EQ(after[0].cached_tokens, 0);
    EXPECT_EQ(Tokens(after), Tokens(before));
    EXPECT_EQ(after[4].logprob, before[4].logprob);
    // The tiers work on.
    int cached = 0;
    for (int attempt = 0; attempt < 50 && cached == 0; ++attempt) {
      for (int32_t other : {2, 3}) Run(Request(2, 80, other, {.max_tokens = 4}));
      cached = Run(request)[0].cached_tokens;
    }
    EXPECT_GT(cached, 0) << host << " " << disk;
  }
}

TEST_F(EngineSleepTest, WhatRunsFinishesFirstAndAWakeComesBefore) {
  auto sink = std::make_shared<Sink>();
  sink->Hold(true);
  ASSERT_TRUE(engine_->Submit({Request(1, 4, 1, {.max_tokens = 20})}, sink).ok());
  sink->WaitForEvents(1, 1);
  Answer<absl::Status> first, second;
  Answer<absl::StatusOr<int64_t>> woken;
  engine_->Sleep(1, first.Take());
  EXPECT_EQ(Refusal(Request(2, 4, 1, {})), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->Health().reason, "falling asleep");
  EXPECT_EQ(engine_->Health().sleep_level, 0);
  engine_->Wake(woken.Take());
  EXPECT_TRUE(engine_->Health().ready);
  ASSERT_TRUE(engine_->Submit({Request(2, 4, 1, {.max_tokens = 3})}, sink).ok());
  engine_->Sleep(1, second.Take());
  sink->Hold(false);
  EXPECT_EQ(first.Wait().code(), absl::StatusCode::kAborted);
  EXPECT_TRUE(woken.Wait().ok());
  EXPECT_TRUE(second.Wait().ok());
  EXPECT_EQ(sink->WaitForEnd(1).size(), 20u);
  EXPECT_EQ(sink->WaitForEnd(2).size(), 3u);
  EXPECT_EQ(engine_->Health().reason, "asleep at level 1");
}

TEST_F(EngineSleepTest, LevelTwoLoadsTheWeightsAgain) {
  HostAllocator* memory = nullptr;
  int loads = 0;
  bool fails = false;
  auto home = ModelHome::Open([&](Allocator& allocator) -> absl::StatusOr<std::unique_ptr<Model>> {
    memory = static_cast<HostAllocator*>(&allocator);
    if (fails) return NotFound("models/gone: no such folder");
    CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, NewModel(allocator));
    model->parameters().RestoreVersion(static_cast<uint64_t>(6 + ++loads));
    return model;
  });
  ASSERT_TRUE(home.ok());
  engine_ = *Engine::Create(*std::move(home), {});
  const GenerationRequest request = Request(1, 40, 1, {.max_tokens = 5, .logprobs = 0});
  const std::vector<TokenEvent> before = Run(request);
  EXPECT_EQ(before[0].weight_version, 7);
  EXPECT_TRUE(Sleep(1).ok());
  EXPECT_GT(memory->usage().reserved_bytes, 0u);
  EXPECT_TRUE(Sleep(2).ok());
  EXPECT_EQ(memory->usage().reserved_bytes, 0u);
  EXPECT_TRUE(Sleep(1).ok()) << "it sleeps deeper";
  EXPECT_EQ(engine_->Health().sleep_level, 2);
  EXPECT_EQ(engine_->Health().reason, "asleep at level 2");
  fails = true;
  EXPECT_EQ(Wake().status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine_->Health().reason, "asleep at level 2, waking failed");
  EXPECT_EQ(engine_->Health().failure, "models/gone: no such folder");
  EXPECT_EQ(Refusal(request), absl::StatusCode::kUnavailable);
  fails = false;
  EXPECT_EQ(*Wake(), 8);
  EXPECT_EQ(engine_->Health().sleep_level, 0);
  EXPECT_EQ(engine_->Info().weight_version, 8);
  const std::vector<TokenEvent> after = Run(request);
  EXPECT_EQ(Tokens(after), Tokens(before));
  EXPECT_EQ(after[4].logprob, before[4].logprob);
  EXPECT_EQ(after[4].weight_version, 8);
  EXPECT_TRUE(Sleep(2).ok());
  engine_->Stop();
  EXPECT_EQ(Wake().status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(EngineSleepTest, TheDraftModelsWeightsAreGivenUpAndLoadedAgainToo) {
  HostAllocator* drafts = nullptr;
  bool fails = false;
  const auto draft =
      *ModelHome::Open([&](Allocator& allocator) -> absl::StatusOr<std::unique_ptr<Model>> {
        drafts = static_cast<HostAllocator*>(&allocator);
        if (fails) return NotFound("models/draft: no such folder");
        return NewModel(allocator);
      });
  auto home = ModelHome::Open(NewModel);
  ASSERT_TRUE(home.ok());
  engine_ = *Engine::Create(
      *std::move(home),
      {.speculation = {.method = SpeculationMethod::kDraftModel, .draft = draft.get()}});
  const GenerationRequest request = Request(1, 40, 1, {.max_tokens = 20, .logprobs = 0});
  const std::vector<TokenEvent> before = Run(request);
  const int64_t accepted = engine_->Stats().spec_decode_accepted_tokens;
  EXPECT_GT(accepted, 0);
  EXPECT_TRUE(Sleep(1).ok());
  EXPECT_GT(drafts->usage().reserved_bytes, 0u);
  EXPECT_TRUE(Sleep(2).ok());
  EXPECT_EQ(drafts->usage().reserved_bytes, 0u);
  fails = true;
  EXPECT_EQ(Wake().status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine_->Health().failure, "models/draft: no such folder");
  EXPECT_EQ(engine_->Health().sleep_level, 1) << "its own weights are there again";
  fails = false;
  EXPECT_TRUE(Wake().ok());
  const std::vector<TokenEvent> after = Run(request);
  EXPECT_EQ(Tokens(after), Tokens(before));
  EXPECT_EQ(engine_->Stats().spec_decode_accepted_tokens, 2 * accepted);
  engine_.reset();
}

TEST_F(EngineSleepTest, AnotherModelInTheFolderIsRefused) {
  bool other = false;
  auto home = ModelHome::Open([&](Allocator& allocator) -> absl::StatusOr<std::unique_ptr<Model>> {
    CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model, NewModel(allocator));
    if (!other) return model;
    HfConfig config = model->config();
    config.source += " ";
    return CreateModel({.allocator = &allocator}, config, {.dtype = DType::kF32});
  });
  engine_ = *Engine::Create(*std::move(home), {});
  EXPECT_TRUE(Sleep(2).ok());
  other = true;
  EXPECT_EQ(Wake().status().code(), absl::StatusCode::kInvalidArgument);
  other = false;
  EXPECT_TRUE(Wake().ok());
}

}  // namespace
}  // namespace cadre
