// A server over several ranks, as threads: the logprobs that it returns are, bit for bit, those of
// the training forward at the same layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <bit>
#include <map>
#include <mutex>
#include <numeric>

#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "model/layout_needs.h"
#include "serving/serving_ranks_fixture.h"

namespace cadre::serving_ranks {
namespace {

struct Served {
  Answers answers;
  std::vector<LayerExpertTokens> expert_tokens;
};

// Rank 0's answers; the others', which follow it, are none.
Served ServeOverRanks(World& world, const std::string& type, const Layout& layout,
                      EngineOptions options, HostAllocator& memory) {
  ServingRanks ranks(world, layout, nullptr);
  options.ranks = &ranks;
  const auto model = MakeModel({.allocator = &memory}, type, ranks.part(), false);
  if (!ranks.leader()) {
    const absl::Status followed = FollowSteps(*ModelHome::Of(*model), options, ranks);
    EXPECT_TRUE(followed.ok()) << Message(followed);
    return {};
  }
  auto engine = Engine::Create(*model, options);
  CADRE_CHECK(engine.ok(), "{}", Message(engine.status()));
  Answers answers = Ask(**engine);
  const EngineStats stats = (*engine)->Stats();
  EXPECT_EQ(stats.prefix_cache_hits + stats.recomputed_tokens, 0) << "a token was not read once";
  // What the first left in the cache serves the second.
  const Answers again = Ask(**engine);
  for (const auto& [id, answer] : answers) {
    EXPECT_EQ(answer.ids, again.at(id).ids) << id;
    EXPECT_EQ(answer.logprobs, again.at(id).logprobs) << id;
  }
  EXPECT_GT((*engine)->Stats().prefix_cache_hits, 100);
  EXPECT_EQ((*engine)->Stats().kv_cache_usage, 0);
  (*engine)->Stop();
  return {std::move(answers), stats.expert_tokens};
}

// The experts of each layer's tokens, by their place in the batch. Filled in by any rank.
class RoutedExperts {
 public:
  void Add(const RoutedTokens& routed) {
    const std::lock_guard lock(mutex_);
    const int64_t k = routed.ids.dim(1);
    for (int64_t i = 0; i < routed.tokens.numel(); ++i) {
      const int32_t* ids = routed.ids.data<int32_t>() + i * k;
      experts_[routed.layer][routed.tokens.data<int64_t>()[i]] = {ids, ids + k};
    }
  }
  // What a server that read each token of the answers but the last ones once has counted.
  std::vector<LayerExpertTokens> Tokens(const Answers& answers, int64_t experts) const {
    std::vector<LayerExpertTokens> layers;
    for (const auto& [layer, tokens] : experts_) {
      layers.push_back({layer, std::vector<int64_t>(static_cast<size_t>(experts), 0)});
      int64_t end = 0;
      for (const auto& [id, answer] : answers) {
        const int64_t begin = end;
        end += static_cast<int64_t>(answer.ids.size());
        for (int64_t token = begin; token + 1 < end; ++token) {
          for (const int32_t expert : tokens.at(token)) ++layers.back().tokens[expert];
        }
      }
    }
    return layers;
  }

 private:
  std::mutex mutex_;
  std::map<int, std::map<int64_t, std::vector<int32_t>>> experts_;
};

void ExpectCounted(const std::vector<LayerExpertTokens>& counted,
                   const std::vector<LayerExpertTokens>& expected) {
  ASSERT_EQ(counted.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(counted[i].layer, expected[i].layer);
    EXPECT_EQ(counted[i].tokens, expected[i].tokens) << "layer " << expected[i].layer;
  }
}

// Each token's logprob but the first's, by the training forward with its tape; nothing on ranks
// that do not hold the last stage.
std::vector<std::vector<float>> Train(World& world, const std::string& type,
                                      config::ParallelConfig sizes, bool sequence_parallel,
                                      const Answers& answers, HostAllocator& memory,
                                      RoutedExperts& routed) {
  sizes.set_sequence_parallel(sequence_parallel);
  auto layout = ResolveLayout(sizes, world.size(), ModelNeedsOf(SpecOf(type), kContext));
  CADRE_CHECK(layout.ok(), "{}", Message(layout.status()));
  const Mesh mesh(&world, *layout);
  ParallelGroups groups = mesh.Groups();
  const auto model = MakeModel({.allocator = &memory}, type, mesh.part(), true);
  std::vector<std::vector<int32_t>> sequences;
  size_t tokens = 0;
  for (const auto& [id, answer] : answers) {
    sequences.push_back(answer.ids);
    tokens += answer.ids.size();
  }
  // Ranks share a batch's tokens evenly.
  sequences.emplace_back(2 * static_cast<size_t>(world.size()) - tokens % world.size(), 7);
  Batch batch = PackSequences(memory, sequences);
  std::vector<int32_t> targets;
  for (const auto& ids : sequences) {
    targets.insert(targets.end(), ids.begin() + 1, ids.end());
    targets.push_back(-1);
  }
  PackedWeights packed;
  Tape tape(&ops::Accumulate);
  Context ctx{.allocator = &memory,
              .parameters = &model->parameters(),
              .packed = &packed,
              .tape = &tape,
              .groups = &groups};
  Var hidden;
  const int stage = mesh.part().stages.front();
  Communicator* pipeline = mesh.group(Axis::kPp);
  if (stage > 0) {
    hidden.value =
        Tensor::Zeros(memory,
                      {batch.tokens() / (mesh.part().sequence_parallel ? mesh.part().tp : 1),
                       model->decoder().handed_on(stage - 1)},
                      DType::kBF16);
    EXPECT_TRUE(pipeline->Receive(hidden.value, stage - 1, {"test"})->Wait().ok());
  }
  std::vector<int64_t> all(static_cast<size_t>(batch.tokens()));
  std::iota(all.begin(), all.end(), 0);
  const ForwardOptions inspected{
      .global_tokens = Tensor::Of<int64_t>(memory, {batch.tokens()}, std::span(all)),
      .inspect_routing = [&](const RoutedTokens& tokens) { routed.Add(tokens); }};
  hidden = model->decoder().ForwardStage(ctx, stage, hidden, batch, inspected).hidden;
  if (!mesh.part().last()) {
    EXPECT_TRUE(pipeline->Send(hidden.value, stage + 1, {"test"})->Wait().ok());
    return {};
  }
  const auto loss =
      model->decoder().Loss(ctx, hidden,
                            {.targets = Tensor::Of<int32_t>(memory, {batch.tokens()}, targets),
                             .scale = 0.01,
                             .z_coefficient = 1e-4});
  EXPECT_TRUE(groups.failure.ok()) << Message(groups.failure);
  std::vector<std::vector<float>> logprobs;
  for (size_t s = 0; s < answers.size(); ++s) {
    const float* begin = loss.logprobs.data<float>() + batch.offsets[s];
    logprobs.emplace_back(begin, begin + sequences[s].size() - 1);
  }
  return logprobs;
}

bool SameBits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

// Tokens of all answers whose logprobs differ from the reference's.
int Differences(const Answers& answers, const std::vector<std::vector<float>>& reference,
                int* compared) {
  int differing = 0;
  size_t s = 0;
  for (const auto& [id, answer] : answers) {
    const std::vector<float>& expected = reference[s++];
    const size_t first = answer.ids.size() - answer.logprobs.size();
    for (size_t i = 0; i < answer.logprobs.size(); ++i, ++*compared) {
      differing += !SameBits(answer.logprobs[i], expected[first - 1 + i]);
    }
    for (size_t i = 1; i < answer.prompt.size(); ++i, ++*compared) {
      differing += answer.prompt[i].token != answer.ids[i] ||
                   !SameBits(answer.prompt[i].logprob, expected[i - 1]);
    }
  }
  return differing;
}

struct Case {
  const char* model;
  int tp = 1;
  int ep = 1;
  int pp = 1;
  int64_t max_num_batched_tokens = 2048;
};

class ServingRanksTest : public testing::TestWithParam<Case> {};

TEST_P(ServingRanksTest, LogprobsHaveTheBitsOfTheTrainersAtThatLayout) {
  const Case& c = GetParam();
  const config::ParallelConfig sizes = Sizes(c.tp, c.ep, c.pp);
  const auto layout = LayoutOfServing(SpecOf(c.model), sizes, c.tp * c.pp);
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  HostAllocator memory;
  Served served;
  const Answers& answers = served.answers;
  RoutedExperts routed;
  std::barrier together(c.tp * c.pp);
  RunRanks(c.tp * c.pp, [&](World& world) {
    Served own = ServeOverRanks(world, c.model, *layout,
                                {.max_num_seqs = 5,
                                 .max_num_batched_tokens = c.max_num_batched_tokens,
                                 .max_model_len = kContext},
                                memory);
    if (world.rank() == 0) served = std::move(own);
    together.arrive_and_wait();
    for (const bool sequence_parallel : {false, true}) {
      if (sequence_parallel && c.tp == 1) continue;
      const auto reference =
          Train(world, c.model, sizes, sequence_parallel, answers, memory, routed);
      if (reference.empty()) continue;  // of another stage than the last
      int compared = 0;
      EXPECT_EQ(Differences(answers, reference, &compared), 0)
          << "sequence_parallel " << sequence_parallel;
      EXPECT_GT(compared, 400);
    }
  });
  for (const auto& [id, answer] : answers) EXPECT_EQ(answer.finish, FinishReason::kLength) << id;
  ExpectCounted(served.expert_tokens, routed.Tokens(answers, ExpertsOf(c.model)));
}

INSTANTIATE_TEST_SUITE_P(Models, ServingRanksTest,
                         testing::Values(Case{"llama", 2}, Case{"llama", 2, 1, 1, 37},
                                         Case{"llama", 2, 1, 1, 0},
                                         Case{"qwen2", 4}, Case{"qwen3_moe", 2, 1, 1, 64},
                                         Case{"qwen3_moe", 2, 2, 1, 61},
                                         Case{"gpt_oss", 2, 1, 1, 53},
                                         Case{"deepseek_v3", 2, 1, 1, 200},
                                         Case{"deepseek_v3", 4, 2}, Case{"llama", 1, 1, 2, 45},
                                         Case{"qwen3_moe", 2, 2, 2, 100}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return fmt::format("{}Tp{}Ep{}Pp{}Tokens{}", c.model, c.tp, c.ep, c.pp,
                                              c.max_num_batched_tokens);
                         });

TEST(ServingLayout, WhatCannotRunIsRefusedWithTheArithmetic) {
  const auto refusal = [](const config::ParallelConfig& sizes, int world) {
    return Message(LayoutOfServing(SpecOf("llama"), sizes, world).status());
  };
  EXPECT_THAT(refusal(Sizes(3), 3), testing::HasSubstr("num_attention_heads 4 is not a multiple"));
  EXPECT_THAT(refusal(Sizes(2), 3), testing::HasSubstr("does not divide a world of 3"));
  config::ParallelConfig sizes = Sizes(2);
  sizes.set_zero_stage(3);
  EXPECT_THAT(refusal(sizes, 2), testing::HasSubstr("parallel.zero_stage 3"));
  sizes = Sizes(2);
  sizes.set_sequence_parallel(true);
  EXPECT_THAT(refusal(sizes, 2), testing::HasSubstr("parallel.sequence_parallel"));
  EXPECT_THAT(refusal(Sizes(1), 2), testing::HasSubstr("data_parallel_size 2"));
  EXPECT_THAT(refusal(Sizes(2, 2), 2), testing::HasSubstr("the model has no experts"));
  EXPECT_THAT(refusal(Sizes(1, 1, 3), 3), testing::HasSubstr("num_hidden_layers 2"));
}

}  // namespace
}  // namespace cadre::serving_ranks
