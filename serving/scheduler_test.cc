#include "serving/scheduler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "serving/scheduler_fixture.h"

namespace cadre {
namespace {

using Ran = SchedulerRig::Ran;

std::map<uint64_t, int64_t> ById(const Ran& ran) { return {ran.begin(), ran.end()}; }

TEST(Scheduler, PromptsAreReadInChunksWhileOthersDecode) {
  SchedulerRig rig(64, {.max_num_seqs = 4, .max_num_batched_tokens = 10, .max_context = 100});
  rig.Add({.id = 1, .prompt = 4});
  rig.Add({.id = 2, .prompt = 20});
  EXPECT_EQ(rig.Step(), (Ran{{1, 4}, {2, 6}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 9}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 5}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 1}}));
}

TEST(Scheduler, ALongPromptCostsNobodyATurn) {
  SchedulerRig rig(4000, {.max_num_seqs = 9, .max_num_batched_tokens = 12, .max_context = 30000});
  for (uint64_t id = 1; id <= 6; ++id) rig.Add({.id = id, .prompt = 3, .max_tokens = 5000});
  for (int step = 0; step < 5; ++step) rig.Step();
  rig.Add({.id = 7, .prompt = 20000});
  rig.Add({.id = 8, .prompt = 400});
  for (int step = 0; step < 200; ++step) {
    const auto ran = ById(rig.Step());
    for (uint64_t id = 1; id <= 6; ++id) ASSERT_EQ(ran.at(id), 1) << "step " << step;
    // Nor does it stall the short prompt behind it, which has half of what is left and then
    // decodes.
    ASSERT_GE(ran.at(8), 1) << "step " << step;
    ASSERT_GE(ran.at(7), 3) << "step " << step;
  }
  rig.Add({.id = 9, .prompt = 2});
  EXPECT_GE(ById(rig.Step()).at(9), 1);
}

TEST(Scheduler, PromptsFillAMixedStepOnlySoFarButAreNotStarved) {
  SchedulerRig rig(400, {.max_num_seqs = 20,
                         .max_num_batched_tokens = 64,
                         .max_num_mixed_tokens = 16,
                         .max_context = 1000});
  rig.Add({.id = 1, .prompt = 70, .max_tokens = 90});
  EXPECT_EQ(rig.Step(), (Ran{{1, 64}}));  // nobody waits for a next token
  EXPECT_EQ(rig.Step(), (Ran{{1, 6}}));
  rig.Add({.id = 2, .prompt = 100, .max_tokens = 90});
  EXPECT_EQ(ById(rig.Step()), (std::map<uint64_t, int64_t>{{1, 1}, {2, 15}}));
  for (uint64_t id = 3; id <= 16; ++id) rig.Add({.id = id, .prompt = 1, .max_tokens = 90});
  for (int step = 0; step < 20; ++step) rig.Step();
  rig.Add({.id = 17, .prompt = 100, .max_tokens = 90});
  EXPECT_EQ(ById(rig.Step()).at(17), 4);  // 16 decode already
}

TEST(Scheduler, AllWhoReadGoOnWhereOthersCameToDecode) {
  SchedulerRig rig(400, {.max_num_seqs = 20,
                         .max_num_batched_tokens = 64,
                         .max_num_mixed_tokens = 8,
                         .max_context = 1000});
  for (uint64_t id = 1; id <= 10; ++id) rig.Add({.id = id, .prompt = 9, .max_tokens = 90});
  rig.Step();
  for (int step = 0; step < 10; ++step) {
    for (const auto& [id, tokens] : rig.Step()) EXPECT_GE(tokens, 1) << id;
  }
  EXPECT_EQ(rig.Step().size(), 10u);
}

TEST(Scheduler, NoMoreRunThanTheBudgetHasTokens) {
  SchedulerRig rig(64, {.max_num_seqs = 50, .max_num_batched_tokens = 3, .max_context = 100});
  for (uint64_t id = 1; id <= 5; ++id) rig.Add({.id = id, .prompt = 1, .max_tokens = 50});
  for (int step = 0; step < 4; ++step) EXPECT_EQ(rig.Step().size(), 3u);
}

TEST(Scheduler, WholePromptsComeFirstAndAloneWithoutChunks) {
  SchedulerRig rig(64, {.max_num_seqs = 8,
                        .max_num_batched_tokens = 10,
                        .max_context = 100,
                        .chunked_prefill = false});
  rig.Add({.id = 1, .prompt = 4});
  rig.Add({.id = 2, .prompt = 6});
  rig.Add({.id = 3, .prompt = 30});
  EXPECT_EQ(rig.Step(), (Ran{{1, 4}, {2, 6}}));
  EXPECT_EQ(rig.Step(), (Ran{{3, 30}}));  // over the budget, so alone
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 1}, {3, 1}}));
  rig.Add({.id = 4, .prompt = 5});
  EXPECT_EQ(rig.Step(), (Ran{{4, 5}}));
  EXPECT_EQ(rig.Step().size(), 4u);
}

TEST(Scheduler, AdmissionIsFirstComeWithinItsPlaces) {
  SchedulerRig rig(64, {.max_num_seqs = 1, .max_num_batched_tokens = 100, .max_context = 100});
  rig.Add({.id = 1, .prompt = 4});
  rig.Add({.id = 2, .prompt = 4});
  EXPECT_EQ(rig.Step(), (Ran{{1, 4}}));
  EXPECT_EQ(rig.scheduler().waiting(), 1);
  rig.scheduler().Remove(1);
  EXPECT_EQ(rig.Step(), (Ran{{2, 4}}));
}

TEST(Scheduler, TheYoungestGivesWayAndComesBack) {
  for (bool caching : {false, true}) {
    SchedulerRig rig(
        3,
        {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48, .growth_reserve = 0},
        caching);
    rig.Add({.id = 1, .prompt = 16});
    rig.Add({.id = 2, .prompt = 15});
    EXPECT_EQ(rig.Step(), (Ran{{1, 16}, {2, 15}}));
    // All three blocks are in use, and 2's only one is full.
    EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 1}}));
    EXPECT_EQ(rig.Step(), (Ran{{1, 1}}));
    EXPECT_EQ(rig.scheduler().preemptions(), 1);
    EXPECT_EQ(rig.scheduler().waiting(), 1);
    EXPECT_EQ(rig.scheduler().recomputed_tokens(), 0);
    rig.scheduler().Remove(1);
    // It finds its own full block again, or computes what it had generated once more.
    EXPECT_EQ(rig.Step(), (Ran{{2, caching ? 1 : 17}}));
    EXPECT_EQ(rig.scheduler().prefix_hits(), 0) << "what it had computed itself is no hit";
    EXPECT_EQ(rig.scheduler().recomputed_tokens(), caching ? 0 : 16);
  }
}

TEST(Scheduler, ChoicesWaitForTheirPromptAndShareIt) {
  SchedulerRig rig(16, {.max_num_seqs = 4, .max_num_batched_tokens = 16, .max_context = 100});
  const auto prompt = std::make_shared<std::vector<int32_t>>(20, 5);
  for (uint64_t id : {1, 2, 3}) {
    rig.AddRequest({.id = id, .prompt = prompt, .cache_salt = id == 3 ? "other" : ""});
  }
  EXPECT_EQ(rig.Step(), (Ran{{1, 8}, {3, 8}})) << "another tenant's prompt is its own";
  EXPECT_EQ(rig.Step(), (Ran{{1, 8}, {3, 8}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 4}, {3, 4}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {3, 1}, {2, 1}}));
  EXPECT_EQ(rig.cache().blocks() - rig.cache().free_blocks(), 3 + 2);
  EXPECT_EQ(rig.scheduler().prefix_queries(), 60);
  EXPECT_EQ(rig.scheduler().prefix_hits(), 19);
}

TEST(Scheduler, AChoiceThatWaitsForItsPromptHoldsNobodyBehindItBack) {
  for (const bool chunked : {true, false}) {
    SchedulerRig rig(64, {.max_num_seqs = 4,
                          .max_num_batched_tokens = 40,
                          .max_context = 600,
                          .chunked_prefill = chunked});
    const auto prompt = std::make_shared<std::vector<int32_t>>(500, 5);
    for (uint64_t id : {1, 2}) rig.AddRequest({.id = id, .prompt = prompt});
    rig.Add({.id = 3, .prompt = 10});
    rig.Add({.id = 4, .prompt = 10});
    if (chunked) {
      EXPECT_EQ(rig.Step(), (Ran{{1, 20}, {3, 10}, {4, 10}}));
    } else {
      EXPECT_EQ(rig.Step(), (Ran{{1, 500}}));
      EXPECT_EQ(rig.Step(), (Ran{{2, 1}, {3, 10}, {4, 10}}));
    }
  }
}

TEST(Scheduler, WhoComesLaterLeavesTheBlocksThatAWaitingChoiceNeeds) {
  // 1 and its choice 2 need six blocks each, of which they share three.
  SchedulerRig rig(
      11,
      {.max_num_seqs = 4, .max_num_batched_tokens = 32, .max_context = 170, .growth_reserve = 48});
  const auto prompt = std::make_shared<std::vector<int32_t>>(48, 5);
  const SamplingParams sampling{.max_tokens = 49};
  for (uint64_t id : {1, 2}) rig.AddRequest({.id = id, .prompt = prompt, .sampling = sampling});
  rig.Add({.id = 3, .prompt = 16, .max_tokens = 40});
  EXPECT_EQ(rig.Step(), (Ran{{1, 32}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 16}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 1}}));
  EXPECT_EQ(rig.scheduler().waiting(), 1);
  EXPECT_EQ(rig.scheduler().preemptions(), 0);
}

TEST(Scheduler, WhoComesLaterLeavesThePlaceThatAWaitingChoiceNeeds) {
  SchedulerRig rig(64, {.max_num_seqs = 2, .max_num_batched_tokens = 40, .max_context = 600});
  const auto prompt = std::make_shared<std::vector<int32_t>>(100, 5);
  for (uint64_t id : {1, 2}) rig.AddRequest({.id = id, .prompt = prompt});
  rig.Add({.id = 3, .prompt = 10});
  EXPECT_EQ(rig.Step(), (Ran{{1, 40}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 40}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 20}}));
  EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, 1}}));
}

// A rig of ten blocks whose disk has the first two of the prompts of 1 to `prompts`.
std::unique_ptr<SchedulerRig> DiskRig(uint64_t prompts) {
  const SchedulerOptions options{
      .max_num_seqs = 8, .max_num_batched_tokens = 200, .max_context = 160, .growth_reserve = 0};
  auto rig = std::make_unique<SchedulerRig>(
      10, options, true, KvTierOptions{.disk_bytes = 1 << 20, .disk_path = "/tmp"});
  for (uint64_t id = 1; id <= prompts + 1; ++id) {
    rig->Add({.id = id, .prompt = id > prompts ? 160 : 32, .max_tokens = 0});
    rig->Step();
    rig->scheduler().Remove(id);
  }
  // Whoever asks for blocks on their way to disk keeps them in memory, so another prompt does.
  const std::vector<int32_t> other(32, 77);
  for (uint64_t block = 0; block < 2 * prompts; ++block) {
    rig->cache().WaitForFetch();
    rig->cache().Fetch({}, other, false);
  }
  for (uint64_t id = 1; id <= prompts; ++id) {
    const std::vector<int32_t> prompt(32, static_cast<int32_t>(id));
    EXPECT_EQ(rig->cache().Fetch({}, prompt, false), KvCache::Fetched::kOnDisk) << id;
  }
  return rig;
}

TEST(Scheduler, WhatIsReadFromDiskHoldsNobodyBehindItBack) {
  const std::unique_ptr<SchedulerRig> rig = DiskRig(2);
  for (uint64_t id : {1, 2, 4}) rig->Add({.id = id, .prompt = 40});
  std::map<uint64_t, int64_t> read;
  const Ran first = rig->Step();
  EXPECT_EQ(ById(first)[4], 40);
  for (const auto& [id, tokens] : first) read.emplace(id, tokens);
  while (read.size() < 3) {
    rig->cache().WaitForFetch();
    for (const auto& [id, tokens] : rig->Step()) read.emplace(id, tokens);
  }
  EXPECT_EQ(read, (std::map<uint64_t, int64_t>{{1, 8}, {2, 8}, {4, 40}}));
}

// Who would be passed by ever more of those that come would never be read.
TEST(Scheduler, AtMostThreeThatWaitForTheDiskArePassedOver) {
  for (uint64_t on_disk : {3, 4}) {
    const std::unique_ptr<SchedulerRig> rig = DiskRig(on_disk);
    for (uint64_t id = 1; id <= on_disk; ++id) rig->Add({.id = id, .prompt = 33});
    rig->Add({.id = 9, .prompt = 10});
    EXPECT_EQ(rig->Step(), on_disk == 3 ? (Ran{{9, 10}}) : Ran{});
  }
}

TEST(Scheduler, WhoComesLaterLeavesTheBlocksThatAPrefixFromDiskNeeds) {
  for (int64_t prompt : {47, 48}) {  // of ten blocks one runs, and the one on disk needs six
    const std::unique_ptr<SchedulerRig> rig = DiskRig(1);
    rig->Add({.id = 8, .prompt = 10});
    rig->Step();
    rig->Add({.id = 1, .prompt = 95});
    rig->Add({.id = 9, .prompt = prompt});
    EXPECT_EQ(rig->Step(), prompt == 47 ? (Ran{{8, 1}, {9, 47}}) : (Ran{{8, 1}}));
  }
}

TEST(Scheduler, PromptsThatAreScoredAreComputed) {
  SchedulerRig rig(8, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 100});
  rig.Add({.id = 1, .prompt = 40});
  rig.Step();
  for (int prompt_logprobs : {-1, 0}) {
    GenerationRequest request{.id = 2, .prompt = std::make_shared<std::vector<int32_t>>(40, 1)};
    request.sampling.prompt_logprobs = prompt_logprobs;
    rig.AddRequest(std::move(request));
    EXPECT_EQ(rig.Step(), (Ran{{1, 1}, {2, prompt_logprobs < 0 ? 8 : 40}}));
    rig.scheduler().Remove(2);
  }
}

TEST(Scheduler, TheLowestPriorityGivesWayThoughItCameFirst) {
  SchedulerRig rig(3, {.max_num_seqs = 4,
                       .max_num_batched_tokens = 100,
                       .max_context = 48,
                       .growth_reserve = 0,
                       .queue = {.policy = SchedulingPolicy::kPriority}});
  rig.Add({.id = 1, .prompt = 16, .priority = 5});
  rig.Add({.id = 2, .prompt = 15, .priority = -1});
  EXPECT_EQ(rig.Step(), (Ran{{2, 15}, {1, 16}}));
  rig.Step();
  EXPECT_EQ(rig.Step(), (Ran{{2, 1}}));
  EXPECT_EQ(rig.scheduler().preemptions(), 1);
}

TEST(Scheduler, WhatRunsHasRoomToGrowBeforeAnotherComes) {
  SchedulerRig rig(
      10,
      {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 160, .growth_reserve = 64});
  rig.Add({.id = 1, .prompt = 16, .max_tokens = 100});
  rig.Add({.id = 2, .prompt = 16, .max_tokens = 100});
  // Each needs 80 tokens with its reserve, which is five blocks: both fit, a third would not.
  rig.Add({.id = 3, .prompt = 1, .max_tokens = 10});
  EXPECT_EQ(rig.Step().size(), 2u);
  EXPECT_EQ(rig.scheduler().waiting(), 1);
}

// Long answers over a cache that holds two of them: without a reserve they push each other out
// again and again, with one a bounded number of times; either way all end.
TEST(Scheduler, PreemptionsAreBoundedUnderAdversarialLoad) {
  constexpr int kSequences = 24, kTokens = 600, kReserve = 64;
  auto most_preempted = [](int64_t reserve) {
    SchedulerRig rig(82,
                     {.max_num_seqs = 16,
                      .max_num_batched_tokens = 64,
                      .max_context = 640,
                      .growth_reserve = reserve},
                     /*prefix_caching=*/false);
    for (uint64_t id = 1; id <= kSequences; ++id) {
      rig.Add({.id = id, .prompt = 20, .max_tokens = kTokens});
    }
    int64_t steps = 0;
    // The oldest always goes on, so the whole takes no longer than one after the other.
    while (rig.ended().size() < kSequences && ++steps < kSequences * (kTokens + 20)) {
      rig.StepAndEnd();
    }
    EXPECT_EQ(rig.ended().size(), static_cast<size_t>(kSequences));
    EXPECT_EQ(rig.cache().free_blocks(), 82);
    return rig.most_preempted();
  };
  const double bound = std::log2(static_cast<double>(kTokens) / kReserve) + 1;
  EXPECT_GT(most_preempted(0), bound);
  EXPECT_GT(most_preempted(kReserve), 0);
  EXPECT_LE(most_preempted(kReserve), bound);
}

TEST(Scheduler, RemovingFreesBlocks) {
  SchedulerRig rig(4, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48});
  rig.Add({.id = 1, .prompt = 30});
  rig.Step();
  EXPECT_EQ(rig.cache().free_blocks(), 2);
  EXPECT_NE(rig.scheduler().Remove(1), nullptr);
  EXPECT_EQ(rig.cache().free_blocks(), 4);
  EXPECT_EQ(rig.scheduler().Remove(1), nullptr);
}

TEST(Scheduler, APromptThatFillsEveryBlockIsAdmitted) {
  for (int max_tokens : {0, 1}) {
    SchedulerRig rig(2, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48});
    ASSERT_TRUE(rig.scheduler().Admissible(32 - max_tokens, {.max_tokens = max_tokens}).ok());
    rig.Add({.id = 1, .prompt = 32 - max_tokens, .max_tokens = max_tokens});
    EXPECT_EQ(rig.Step(), (Ran{{1, 32 - max_tokens}}));
  }
}

TEST(Scheduler, RefusesWhatCannotFit) {
  SchedulerRig rig(2, {.max_num_seqs = 4, .max_num_batched_tokens = 100, .max_context = 48});
  const Scheduler& scheduler = rig.scheduler();
  EXPECT_TRUE(scheduler.Admissible(16, {.max_tokens = 16}).ok());
  for (auto [prompt, max_tokens] : {std::pair{16, 17}, {40, 9}, {0, 9}}) {
    EXPECT_EQ(scheduler.Admissible(prompt, {.max_tokens = max_tokens}).code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace cadre
