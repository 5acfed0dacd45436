// What happens to a server over several ranks, as threads, besides sampling: embeddings, sleep, and
// the loss of a rank, which is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "serving/serving_ranks_fixture.h"

namespace cadre::serving_ranks {
namespace {

// Of every other prompt the mean, else the last token's.
std::vector<GenerationRequest> EmbeddingRequests() {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < kRequests; ++i) {
    requests.push_back(Request(i));
    requests.back().sampling = {.max_tokens = 0};
    requests.back().pooling = i % 2 == 0 ? Pooling::kMean : Pooling::kLast;
  }
  return requests;
}

// A layout that changes no bit of a hidden state.
struct Case {
  const char* model;
  int ep = 1;
  int pp = 1;
  int dp = 1;
  int64_t max_num_batched_tokens = 2048;
};

class EmbeddingRanksTest : public testing::TestWithParam<Case> {};

TEST_P(EmbeddingRanksTest, AreThoseOfOneProcess) {
  const Case& c = GetParam();
  const auto layout = LayoutOfServing(SpecOf(c.model), Sizes(1, c.ep, c.pp), c.pp * c.dp);
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  HostAllocator memory;
  EngineOptions options{.max_num_batched_tokens = c.max_num_batched_tokens,
                        .max_model_len = kContext};
  const auto whole = MakeModel({.allocator = &memory}, c.model, {}, false);
  auto alone = Engine::Create(*whole, options);
  ASSERT_TRUE(alone.ok()) << Message(alone.status());
  const Answers expected = Ask(**alone, EmbeddingRequests());
  RunRanks(c.pp * c.dp, [&](World& world) {
    ServingRanks ranks(world, *layout, nullptr);
    EngineOptions own = options;
    own.ranks = &ranks;
    const auto model = MakeModel({.allocator = &memory}, c.model, ranks.part(), false);
    if (!ranks.leader()) {
      EXPECT_TRUE(FollowSteps(*ModelHome::Of(*model), own, ranks).ok());
      return;
    }
    auto engine = Engine::Create(*model, own);
    ASSERT_TRUE(engine.ok()) << Message(engine.status());
    for (const auto& [id, answer] : Ask(**engine, EmbeddingRequests())) {
      EXPECT_EQ(answer.embedding.size(), 64u);
      EXPECT_EQ(answer.embedding, expected.at(id).embedding) << id;
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Models, EmbeddingRanksTest,
                         testing::Values(Case{"llama", 1, 2, 1, 45}, Case{"qwen3_moe", 2, 2, 2},
                                         Case{"qwen3_moe", 2, 1, 2, 45}),
                         [](const auto& info) {
                           return fmt::format("{}Pp{}Dp{}", info.param.model, info.param.pp,
                                              info.param.dp);
                         });

TEST(ServingRanksQueue, HoldsWhatNoDataParallelRankRuns) {
  const auto layout = LayoutOfServing(SpecOf("llama"), Sizes(1), 2);
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  HostAllocator memory;
  RunRanks(2, [&](World& world) {
    ServingRanks ranks(world, *layout, nullptr);
    const auto model = MakeModel({.allocator = &memory}, "llama", ranks.part(), false);
    const EngineOptions options{
        .max_num_seqs = 1, .max_model_len = kContext, .max_queue_size = 1, .ranks = &ranks};
    if (!ranks.leader()) {
      EXPECT_TRUE(FollowSteps(*ModelHome::Of(*model), options, ranks).ok());
      return;
    }
    auto engine = Engine::Create(*model, options);
    ASSERT_TRUE(engine.ok()) << Message(engine.status());
    EXPECT_EQ((*engine)->Submit({Request(0), Request(1), Request(2), Request(3)}, nullptr).code(),
              absl::StatusCode::kInvalidArgument);
    for (const auto& [id, answer] : Ask(**engine, {Request(0), Request(1), Request(2)})) {
      EXPECT_EQ(answer.finish, FinishReason::kLength) << id;
    }
  });
}

absl::Status Sleep(Engine& engine, int level) {
  std::promise<absl::Status> slept;
  engine.Sleep(level, [&](absl::Status status) { slept.set_value(std::move(status)); });
  return slept.get_future().get();
}

absl::Status Wake(Engine& engine) {
  std::promise<absl::Status> woken;
  engine.Wake([&](const absl::StatusOr<int64_t>& version) { woken.set_value(version.status()); });
  return woken.get_future().get();
}

// Rank 0's part of the test below. `fails`: of the last rank's loads.
void SleepAndWake(Engine& engine, std::atomic<bool>& fails) {
  const Answers before = Ask(engine);
  const auto expect_the_same = [&] {
    for (const auto& [id, answer] : Ask(engine)) {
      EXPECT_EQ(answer.ids, before.at(id).ids) << id;
      EXPECT_EQ(answer.logprobs, before.at(id).logprobs) << id;
    }
  };
  EXPECT_TRUE(Sleep(engine, 1).ok());
  EXPECT_EQ(engine.Submit({Request(99)}, nullptr).code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Wake(engine).ok());
  expect_the_same();
  EXPECT_TRUE(Sleep(engine, 1).ok());
  EXPECT_TRUE(Sleep(engine, 2).ok()) << "deeper";
  EXPECT_TRUE(Sleep(engine, 1).ok()) << "it does already";
  fails = true;
  EXPECT_EQ(Message(Wake(engine)), "rank 3: models/gone: no such folder");
  EXPECT_EQ(engine.Health().reason, "asleep at level 2, waking failed");
  EXPECT_EQ(engine.Health().failure, "rank 3: models/gone: no such folder");
  fails = false;
  EXPECT_TRUE(Wake(engine).ok());
  expect_the_same();
  EXPECT_TRUE(Sleep(engine, 2).ok());
}

TEST(ServingRanksSleep, AllRanksGiveTheirMemoryUpAndTakeItAgainOrNoneDoes) {
  const auto layout = LayoutOfServing(SpecOf("qwen3_moe"), Sizes(1, 2, 2), 4);
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  std::atomic<bool> fails = false;
  RunRanks(4, [&](World& world) {
    ServingRanks ranks(world, *layout, nullptr);
    HostAllocator* memory = nullptr;
    auto home =
        ModelHome::Open([&](Allocator& allocator) -> absl::StatusOr<std::unique_ptr<Model>> {
          memory = static_cast<HostAllocator*>(&allocator);
          if (fails && world.rank() == 3) return NotFound("models/gone: no such folder");
          return MakeModel({.allocator = &allocator}, "qwen3_moe", ranks.part(), false);
        });
    ASSERT_TRUE(home.ok());
    const EngineOptions options{.max_model_len = kContext, .ranks = &ranks};
    if (!ranks.leader()) {
      const absl::Status followed = FollowSteps(**home, options, ranks);
      EXPECT_TRUE(followed.ok()) << Message(followed);
      EXPECT_EQ(memory->usage().reserved_bytes, 0u) << "it slept at the end";
      return;
    }
    auto engine = Engine::Create(*std::move(home), options);
    ASSERT_TRUE(engine.ok()) << Message(engine.status());
    SleepAndWake(**engine, fails);
    EXPECT_EQ(memory->usage().reserved_bytes, 0u);
    (*engine)->Stop();
  });
}

// One that leaves in the middle of the work.
absl::Status FollowAWhile(ServingRanks& ranks, const Model& model, const EngineOptions& options) {
  CADRE_RETURN_IF_ERROR(PlanCacheOf(model, options).status());
  return ranks.Hear().status();
}

TEST(ServingRanksFailure, ALostRankEndsAllRequestsAndIsNamed) {
  const auto layout = LayoutOfServing(SpecOf("llama"), Sizes(2), 2);
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  HostAllocator memory;
  RunRanks(2, [&](World& world) {
    ServingRanks ranks(world, *layout, nullptr);
    const auto model = MakeModel({.allocator = &memory}, "llama", ranks.part(), false);
    std::vector<absl::Status> failures;
    const EngineOptions options{
        .max_model_len = kContext, .ranks = &ranks, .on_failure = [&](const absl::Status& status) {
          failures.push_back(status);
        }};
    if (!ranks.leader()) {
      const absl::Status heard = FollowAWhile(ranks, *model, options);
      EXPECT_TRUE(heard.ok()) << Message(heard);
      return;
    }
    auto engine = Engine::Create(*model, options);
    ASSERT_TRUE(engine.ok()) << Message(engine.status());
    for (const auto& [id, answer] : Ask(**engine)) {
      EXPECT_EQ(answer.finish, FinishReason::kError) << id;
      EXPECT_THAT(Message(answer.error), testing::HasSubstr("rank 1 is lost in"));
    }
    EXPECT_FALSE((*engine)->Health().ready);
    EXPECT_THAT((*engine)->Health().failure, testing::HasSubstr("rank 1"));
    EXPECT_EQ((*engine)->Submit({Request(99)}, nullptr).code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(Sleep(**engine, 1)), testing::HasSubstr("rank 1"));
    EXPECT_THAT(Message(Wake(**engine)), testing::HasSubstr("rank 1"));
    (*engine)->Stop();
    ASSERT_EQ(failures.size(), 1u);
    EXPECT_TRUE(absl::IsUnavailable(failures[0]));
  });
}

}  // namespace
}  // namespace cadre::serving_ranks
