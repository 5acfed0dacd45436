// The engine on a small random mixture of experts: what requests get whatever else runs, and what
// happens at the edges.
#include "serving/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "serving/engine_test_fixture.h"
#include "serving/machine_memory.h"

namespace cadre {
namespace {

TEST_F(EngineTest, ChoicesDifferAndRepeatWhateverElseRuns) {
  std::vector<GenerationRequest> requests;
  for (uint32_t choice = 0; choice < 4; ++choice) {
    requests.push_back(
        Request(choice + 1, 9, 2,
                {.temperature = 1, .seed = 7, .choice = choice, .max_tokens = 12, .logprobs = 2}));
  }
  auto sink = std::make_shared<Sink>();
  ASSERT_TRUE(engine_->Submit(requests, sink).ok());
  std::vector<std::vector<int32_t>> texts;
  for (const GenerationRequest& request : requests) {
    std::vector<TokenEvent> together = sink->WaitForEnd(request.id);
    std::vector<TokenEvent> alone = Run(request);
    texts.push_back(Tokens(together));
    EXPECT_EQ(texts.back(), Tokens(alone));
    ASSERT_EQ(texts.back().size(), 12u);
    EXPECT_EQ(together.back().finish, FinishReason::kLength);
    for (size_t i = 0; i < together.size(); ++i) {
      EXPECT_EQ(together[i].logprob, alone[i].logprob);
      ASSERT_EQ(together[i].top.size(), 2u);
      EXPECT_GE(together[i].top[0].logprob, together[i].logprob);
    }
  }
  std::ranges::sort(texts);
  EXPECT_EQ(std::ranges::unique(texts).size(), 0u) << "two choices are the same";
}

TEST_F(EngineTest, ExpertsAreCountedAsTheRouterChoseThem) {
  const GenerationRequest request = Request(1, 40, 3, {.max_tokens = 9});
  std::vector<int32_t> computed = *request.prompt;
  for (const int32_t token : Tokens(Run(request))) computed.push_back(token);
  computed.pop_back();  // sampled, never read
  Context ctx{.allocator = &allocator_, .parameters = &model_->parameters()};
  const DecoderOutput out = model_->decoder().Forward(
      ctx, PackSequences(allocator_, std::vector<std::vector<int32_t>>{computed}));
  const std::vector<LayerExpertTokens> counted = engine_->Stats().expert_tokens;
  ASSERT_EQ(counted.size(), out.routing.size());
  for (size_t i = 0; i < counted.size(); ++i) {
    std::vector<int64_t> expected(4, 0);
    const Tensor& ids = out.routing[i].ids;
    for (int64_t row = 0; row < ids.numel(); ++row) ++expected[ids.data<int32_t>()[row]];
    EXPECT_EQ(counted[i].layer, static_cast<int>(i));
    EXPECT_EQ(counted[i].tokens, expected) << i;
    EXPECT_EQ(std::accumulate(expected.begin(), expected.end(), 0), 2 * 48);
  }
}

TEST_F(EngineTest, ACancelledRequestFreesItsBlocksAtTheNextStep) {
  auto sink = std::make_shared<Sink>();
  sink->Hold(true);
  ASSERT_TRUE(engine_->Submit({Request(1, 40, 1, {.max_tokens = 50})}, sink).ok());
  sink->WaitForEvents(1, 1);
  EXPECT_EQ(engine_->Stats().num_requests_running, 1);
  EXPECT_GT(engine_->Stats().kv_cache_usage, 0);
  engine_->Cancel(1);
  engine_->Cancel(99);  // unknown
  sink->Hold(false);
  std::vector<TokenEvent> events = sink->WaitForEnd(1);
  EXPECT_EQ(events.size(), 2u);
  EXPECT_EQ(events.back().finish, FinishReason::kCancelled);
  EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
  EXPECT_EQ(engine_->Stats().num_requests_running, 0);
  engine_->Cancel(1);  // over already
  EXPECT_EQ(Run(Request(1, 4, 1, {.max_tokens = 3})).back().finish, FinishReason::kLength);
}

TEST_F(EngineTest, PreemptionChangesNoToken) {
  std::vector<GenerationRequest> requests;
  for (uint64_t id = 1; id <= 4; ++id) {
    requests.push_back(Request(id, 20 + static_cast<int64_t>(id), static_cast<int32_t>(id),
                               {.temperature = 1, .seed = id, .max_tokens = 40, .logprobs = 0}));
  }
  std::vector<std::vector<TokenEvent>> expected;
  for (const GenerationRequest& request : requests) expected.push_back(Run(request));
  EXPECT_EQ(engine_->Stats().num_preemptions, 0);
  Start({.growth_reserve_tokens = 0, .kv_cache_memory_bytes = BytesOfBlocks(6)});
  EXPECT_EQ(engine_->kv_blocks(), 6);
  auto sink = std::make_shared<Sink>();
  ASSERT_TRUE(engine_->Submit(requests, sink).ok());
  for (size_t i = 0; i < requests.size(); ++i) {
    std::vector<TokenEvent> events = sink->WaitForEnd(requests[i].id);
    EXPECT_EQ(Tokens(events), Tokens(expected[i])) << i;
    for (size_t t = 0; t < std::min(events.size(), expected[i].size()); ++t) {
      EXPECT_EQ(events[t].logprob, expected[i][t].logprob) << i << " token " << t;
    }
  }
  EXPECT_GT(engine_->Stats().num_preemptions, 0);
  EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
}

TEST_F(EngineTest, CachedPrefixesAreReportedAndChangeNoToken) {
  const GenerationRequest first =
      Request(1, 40, 1, {.temperature = 0, .max_tokens = 20, .logprobs = 1});
  const std::vector<TokenEvent> cold = Run(first);
  EXPECT_EQ(cold[0].cached_tokens, 0);
  // Prompt and answer together are a later request's prompt.
  std::vector<int32_t> text = *first.prompt;
  for (int32_t token : Tokens(cold)) text.push_back(token);
  text.resize(59);
  GenerationRequest next = first;
  next.id = 2;
  next.prompt = std::make_shared<std::vector<int32_t>>(text);
  const std::vector<TokenEvent> warm = Run(next);
  EXPECT_EQ(warm[0].cached_tokens, 48);
  EXPECT_EQ(warm[1].cached_tokens, 0) << "the first event says it";
  EXPECT_EQ(warm[0].token, cold[19].token);
  EXPECT_EQ(warm[0].logprob, cold[19].logprob);
  EXPECT_EQ(engine_->Stats().prefix_cache_queries, 99);
  EXPECT_EQ(engine_->Stats().prefix_cache_hits, 48);
  next.cache_salt = "another tenant";
  EXPECT_EQ(Run(next)[0].cached_tokens, 0);
  next.cache_salt.clear();
  next.sampling.prompt_logprobs = 0;
  EXPECT_EQ(Run(next)[0].cached_tokens, 0);
  next.sampling.prompt_logprobs = -1;
  model_->parameters().WeightsChanged();
  EXPECT_EQ(Run(next)[0].cached_tokens, 0);
  EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
  Start({.enable_prefix_caching = false});
  Run(first);
  EXPECT_EQ(Run(next)[0].cached_tokens, 0);
}

TEST_F(EngineTest, PrefixesCanBeEachTenantsOwn) {
  for (const bool by_key : {false, true}) {
    Start({.prefix_cache_by_key = by_key});
    GenerationRequest request = Request(1, 40, 1, {.max_tokens = 2});
    request.tenant = "a";
    Run(request);
    EXPECT_EQ(Run(request)[0].cached_tokens, 32);
    request.tenant = "";
    EXPECT_EQ(Run(request)[0].cached_tokens, by_key ? 0 : 32);
    // A salt makes nobody another tenant.
    for (const char* salt : {"a", "1:a", "0:1:a"}) {
      request.cache_salt = salt;
      EXPECT_EQ(Run(request)[0].cached_tokens, 0) << salt;
    }
  }
}

TEST_F(EngineTest, WhatLeftTheCacheComesBackFromItsTiers) {
  const GenerationRequest first = Request(1, 64, 1, {.max_tokens = 4, .logprobs = 0});
  const std::vector<TokenEvent> expected = Run(first);
  for (const auto& [host, disk] : {std::pair(0, 0), std::pair(1 << 20, 0), std::pair(0, 1 << 20),
                                   std::pair(1 << 14, 1 << 20)}) {
    Start({.kv_cache_memory_bytes = BytesOfBlocks(6),
           .kv_tiers = {.host_bytes = host, .disk_bytes = disk, .disk_path = "/tmp"}});
    Run(first);
    const int all = host + disk == 0 ? 0 : 63;
    // What is on its way to the disk, or back, may be missed; not time after time.
    int cached = -1;
    for (int attempt = 0; attempt < 50 && cached != all; ++attempt) {
      for (int32_t other : {2, 3}) Run(Request(2, 80, other, {.max_tokens = 4}));
      const std::vector<TokenEvent> again = Run(first);
      cached = again[0].cached_tokens;
      EXPECT_EQ(Tokens(again), Tokens(expected));
      EXPECT_EQ(again[3].logprob, expected[3].logprob);
      if (disk == 0) break;
    }
    EXPECT_EQ(cached, all) << host << " " << disk;
    EXPECT_EQ(engine_->Stats().kv_cache_usage, 0);
  }
}

TEST_F(EngineTest, StopEndsWhatRunsAndWaits) {
  Start({.max_num_seqs = 1});
  auto sink = std::make_shared<Sink>();
  sink->Hold(true);
  ASSERT_TRUE(engine_->Submit({Request(1, 4, 1, {.max_tokens = 80})}, sink).ok());
  sink->WaitForEvents(1, 1);
  ASSERT_TRUE(engine_->Submit({Request(2, 4, 1, {.max_tokens = 80})}, sink).ok());
  std::thread stopper([this] { engine_->Stop(); });
  while (engine_->Health().ready) std::this_thread::yield();
  sink->Hold(false);
  EXPECT_EQ(sink->WaitForEnd(1).back().finish, FinishReason::kCancelled);
  EXPECT_EQ(sink->WaitForEnd(2).back().finish, FinishReason::kCancelled);
  stopper.join();
  engine_->Stop();
  EXPECT_FALSE(engine_->Health().ready);
  EXPECT_EQ(Refusal(Request(3, 4, 1, {})), absl::StatusCode::kUnavailable);
}

TEST_F(EngineTest, TheQueueIsBoundedAndTakesAllOrNothing) {
  Start({.max_num_seqs = 1, .max_queue_size = 2});
  auto sink = std::make_shared<Sink>();
  sink->Hold(true);
  ASSERT_TRUE(engine_->Submit({Request(1, 4, 1, {.max_tokens = 3})}, sink).ok());
  sink->WaitForEvents(1, 1);
  std::vector<GenerationRequest> three, two;
  for (uint64_t id : {2, 3, 4}) three.push_back(Request(id, 4, 1, {.max_tokens = 3}));
  two = {three[0], three[1]};
  EXPECT_EQ(engine_->Submit(three, sink).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(engine_->Submit(two, sink).ok());
  EXPECT_EQ(engine_->Stats().num_requests_waiting, 2);
  EXPECT_EQ(Refusal(Request(4, 4, 1, {})), absl::StatusCode::kResourceExhausted);
  sink->Hold(false);
  EXPECT_EQ(Tokens(sink->WaitForEnd(3)), Tokens(sink->WaitForEnd(1)));
  EXPECT_EQ(sink->events(4), 0u);
  EXPECT_EQ(Run(Request(4, 4, 1, {.max_tokens = 3})).size(), 3u);
}

TEST_F(EngineTest, TheContextIsAHardBound) {
  EXPECT_EQ(engine_->Info().max_context, kContext);
  std::vector<TokenEvent> events = Run(Request(1, 6, 1, {.max_tokens = kContext - 6}));
  EXPECT_EQ(Tokens(events).size(), static_cast<size_t>(kContext - 6));
  EXPECT_EQ(events.back().finish, FinishReason::kLength);
  const auto invalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(Tokens(Run(Request(2, kContext - 1, 1, {.max_tokens = 1}))).size(), 1u);
  EXPECT_EQ(Refusal(Request(3, kContext, 1, {.max_tokens = 1})), invalid);
  EXPECT_EQ(Refusal(Request(3, 0, 1, {.max_tokens = 1})), invalid);
  EXPECT_EQ(Refusal({.id = 3}), invalid);
  for (int32_t id : {-1, 61}) {
    auto prompt = std::make_shared<std::vector<int32_t>>(1, id);
    EXPECT_EQ(Refusal({.id = 3, .prompt = prompt}), invalid);
  }
  auto twice = {Request(3, 4, 1, {}), Request(3, 4, 1, {})};
  EXPECT_EQ(engine_->Submit(twice, std::make_shared<Sink>()).code(), invalid);
}

TEST_F(EngineTest, StopTokensEndAndMinTokensHoldThemBack) {
  const SamplingParams greedy{.temperature = 0, .max_tokens = 20};
  const std::vector<int32_t> free = Tokens(Run(Request(1, 8, 3, greedy)));
  SamplingParams stops = greedy;
  stops.stop_token_ids = {free[0]};
  std::vector<TokenEvent> stopped = Run(Request(2, 8, 3, stops));
  EXPECT_EQ(stopped.back().finish, FinishReason::kStop);
  EXPECT_EQ(Tokens(stopped), std::vector<int32_t>{free[0]});
  stops.min_tokens = 5;
  const std::vector<int32_t> held = Tokens(Run(Request(3, 8, 3, stops)));
  EXPECT_GE(held.size(), 5u);
  EXPECT_EQ(std::count(held.begin(), held.begin() + 5, free[0]), 0);
}

TEST_F(EngineTest, AMeasuredBudgetHasRoomForAllWhoRun) {
  const std::vector<int32_t> expected = Tokens(Run(Request(1, 70, 3, {.max_tokens = 9})));
  Start({.max_num_seqs = 5000, .max_num_batched_tokens = 0});
  const TokenBudget& budget = engine_->token_budget();
  EXPECT_GE(budget.ridge, 1);
  EXPECT_GE(budget.mixed, budget.ridge);
  EXPECT_GE(budget.step, 5000 + budget.mixed);
  EXPECT_EQ(Tokens(Run(Request(1, 70, 3, {.max_tokens = 9}))), expected);
  Start({.max_num_batched_tokens = 0, .max_num_mixed_tokens = 3});
  EXPECT_EQ(engine_->token_budget().mixed, 3);
  Start({.max_num_batched_tokens = 77});
  EXPECT_EQ(engine_->token_budget().ridge, 0);
  EXPECT_EQ(engine_->token_budget().mixed, 77);
}

TEST_F(EngineTest, PromptsAreScoredTheSameInAnyChunks) {
  const GenerationRequest request =
      Request(1, 70, 5, {.max_tokens = 0, .logprobs = 0, .prompt_logprobs = 2});
  const std::vector<TokenEvent> whole = Run(request);
  ASSERT_EQ(whole.size(), 1u);
  EXPECT_EQ(whole[0].finish, FinishReason::kLength);
  EXPECT_EQ(whole[0].token, -1);
  ASSERT_EQ(whole[0].prompt_logprobs.size(), 70u);
  EXPECT_TRUE(std::isnan(whole[0].prompt_logprobs[0].logprob));
  Start({.max_num_batched_tokens = 11, .attention_workers = 3});
  const std::vector<TokenEvent> chunked = Run(request);
  for (size_t i = 1; i < 70; ++i) {
    EXPECT_EQ(whole[0].prompt_logprobs[i].token, (*request.prompt)[i]);
    EXPECT_EQ(whole[0].prompt_logprobs[i].logprob, chunked[0].prompt_logprobs[i].logprob) << i;
    EXPECT_EQ(whole[0].prompt_top[i].size(), 2u);
  }
}

TEST_F(EngineTest, BiasAndPenaltiesSteerButLogprobsStayTheRawOnes) {
  SamplingParams params{.temperature = 0, .max_tokens = 12, .logprobs = 61};
  const std::vector<TokenEvent> free = Run(Request(1, 8, 3, params));
  params.logit_bias = {{7, 100}};
  const std::vector<TokenEvent> biased = Run(Request(2, 8, 3, params));
  EXPECT_EQ(Tokens(biased), std::vector<int32_t>(12, 7));
  const auto seven = std::ranges::find(free[0].top, 7, &TokenLogprob::token);
  EXPECT_EQ(biased[0].logprob, seven->logprob);
  EXPECT_EQ(biased[0].top[0].logprob, free[0].top[0].logprob);
  // A frequency penalty of that size lets no token come twice.
  params.logit_bias.clear();
  params.frequency_penalty = 100;
  std::vector<int32_t> tokens = Tokens(Run(Request(3, 8, 3, params)));
  std::ranges::sort(tokens);
  EXPECT_EQ(std::ranges::unique(tokens).size(), 0u);
}

TEST_F(EngineTest, EmbeddingsAreThePooledHiddenStatesOfAPlainForward) {
  GenerationRequest request = Request(1, 70, 5, {.max_tokens = 0});
  Context ctx{.allocator = &allocator_, .threads = 1, .parameters = &model_->parameters()};
  const Tensor hidden =
      model_->decoder()
          .Forward(ctx,
                   PackSequences(allocator_, std::vector<std::vector<int32_t>>{*request.prompt}))
          .hidden.value;
  for (Pooling pooling : {Pooling::kMean, Pooling::kLast}) {
    std::vector<float> expected;
    for (int64_t i = 0; i < hidden.dim(1); ++i) {
      double sum = 0;
      for (int64_t row = 0; row < 70; ++row) sum += hidden.data<float>()[row * hidden.dim(1) + i];
      expected.push_back(pooling == Pooling::kMean ? static_cast<float>(sum / 70)
                                                   : hidden.data<float>()[69 * hidden.dim(1) + i]);
    }
    request.pooling = pooling;
    // Whole, in chunks, and preempted by those that came before.
    Start({});
    EXPECT_EQ(Run(request).at(0).embedding, expected);
    EXPECT_EQ(Run(request).at(0).embedding, expected);  // its prompt is cached by now
    Start({.max_num_batched_tokens = 11, .attention_workers = 3});
    EXPECT_EQ(Run(request).at(0).embedding, expected);
    Start({.max_num_batched_tokens = 24, .kv_cache_memory_bytes = BytesOfBlocks(6)});
    auto sink = std::make_shared<Sink>();
    request.id = 9;
    ASSERT_TRUE(engine_->Submit({Request(1, 8, 2, {.max_tokens = 60}), request}, sink).ok());
    EXPECT_EQ(sink->WaitForEnd(9).at(0).embedding, expected);
    EXPECT_TRUE(sink->WaitForEnd(1).at(0).embedding.empty());
  }
}

TEST_F(EngineTest, CountsStepsByTheirTokens) {
  Run(Request(1, 5, 1, {.max_tokens = 3}));
  EngineStats stats = engine_->Stats();
  EXPECT_EQ(stats.num_steps, 3);
  EXPECT_EQ(stats.step_tokens, 7);
  EXPECT_EQ(stats.step_counts[0], 2);  // of one token
  EXPECT_EQ(stats.step_counts[1], 1);  // of up to eight
  EXPECT_TRUE(engine_->Health().ready);
  EXPECT_EQ(engine_->Info().vocab_size, 61);
}

TEST_F(EngineTest, OptionsThatDoNotFitTheModelAreRefused) {
  for (EngineOptions options :
       {EngineOptions{.max_model_len = kContext + 1}, EngineOptions{.block_size = 8},
        EngineOptions{.kv_cache_memory_bytes = 10}, EngineOptions{.kv_tiers = {.host_bytes = 1}},
        EngineOptions{.kv_tiers = {.disk_bytes = 1 << 20}},
        EngineOptions{.enable_prefix_caching = false, .kv_tiers = {.host_bytes = 1 << 20}},
        EngineOptions{.block_size = 0}, EngineOptions{.kv_cache_memory_bytes = INT64_MAX},
        EngineOptions{.kv_cache_memory_bytes = PhysicalMemory() + (int64_t{1} << 30)}}) {
    EXPECT_EQ(Engine::Create(*model_, options).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(MachineMemory, AvailableIsAPartOfThePhysical) {
  EXPECT_GT(AvailableMemory(), 0);
  EXPECT_LT(AvailableMemory(), PhysicalMemory());
}

}  // namespace
}  // namespace cadre
