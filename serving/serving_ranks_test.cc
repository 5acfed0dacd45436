// A server over several ranks, as threads: the logprobs that it returns are, bit for bit, those of
// the training forward at the same layout.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <bit>
#include <map>
#include <mutex>

#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "model/layout_needs.h"
#include "serving/serving_ranks_fixture.h"

namespace cadre::serving_ranks {
namespace {

// What a model and its cache are kept in.
struct Kept {
  WeightFormat weights = WeightFormat::kStored;
  ops::KvQuantization kv = ops::KvQuantization::kNone;
};

struct Served {
  Answers answers;
  std::vector<LayerExpertTokens> expert_tokens;
  int64_t accepted = 0;  // guesses
};

// Rank 0's answers; the others', which follow it, are none.
Served ServeOverRanks(World& world, const std::string& type, const Layout& layout,
                      EngineOptions options, HostAllocator& memory, const Kept& kept = {}) {
  ServingRanks ranks(world, layout, nullptr);
  options.ranks = &ranks;
  options.kv_quantization = kept.kv;
  const auto model = MakeModel({.allocator = &memory}, type, ranks.part(), false, kept.weights);
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
  // Data-parallel ranks with nothing to do take part all the same.
  EXPECT_EQ(Ask(**engine, {Request(1)}).at(1).logprobs, answers.at(1).logprobs);
  EXPECT_GT((*engine)->Stats().prefix_cache_hits, 100);
  EXPECT_EQ((*engine)->Stats().kv_cache_usage, 0);
  (*engine)->Stop();
  return {std::move(answers), stats.expert_tokens, stats.spec_decode_accepted_tokens};
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

// What one of `ranks` data-parallel ranks trains on: every so manieth answer, and then so many more
// tokens that all have as many, and ranks that share a batch can share them evenly.
struct TrainingShare {
  std::vector<uint64_t> ids;
  std::vector<std::vector<int32_t>> sequences;  // of the ids first
  std::vector<int64_t> tokens;                  // each one's place in all answers together
};

TrainingShare ShareOf(const Answers& answers, int ranks, int rank) {
  TrainingShare share;
  std::vector<int64_t> sizes(static_cast<size_t>(ranks), 0);
  int64_t all = 0;
  for (const auto& [id, answer] : answers) {
    const auto owner = static_cast<int>(id % static_cast<uint64_t>(ranks));
    const auto tokens = static_cast<int64_t>(answer.ids.size());
    if (owner == rank) {
      share.ids.push_back(id);
      share.sequences.push_back(answer.ids);
      for (int64_t i = 0; i < tokens; ++i) share.tokens.push_back(all + i);
    }
    sizes[static_cast<size_t>(owner)] += tokens;
    all += tokens;
  }
  const int64_t size = std::ranges::max(sizes) / 8 * 8 + 8;
  for (int64_t i = all; std::ssize(share.tokens) < size; ++i) {
    if (share.sequences.size() == share.ids.size() || share.sequences.back().size() == kContext) {
      share.sequences.emplace_back();
    }
    share.sequences.back().push_back(7);
    share.tokens.push_back(i);
  }
  return share;
}

// Each token's logprob but the first's, of the rank's share of the answers, by the training forward
// with its tape; nothing on ranks that do not hold the last stage.
std::map<uint64_t, std::vector<float>> Train(World& world, const std::string& type,
                                             config::ParallelConfig sizes, bool sequence_parallel,
                                             const Answers& answers, HostAllocator& memory,
                                             RoutedExperts& routed, const Kept& kept = {}) {
  sizes.set_sequence_parallel(sequence_parallel);
  auto layout = ResolveLayout(sizes, world.size(), ModelNeedsOf(SpecOf(type), kContext));
  CADRE_CHECK(layout.ok(), "{}", Message(layout.status()));
  const Mesh mesh(&world, *layout);
  ParallelGroups groups = mesh.Groups();
  const bool trains = kept.weights == WeightFormat::kStored;
  const auto model = MakeModel({.allocator = &memory}, type, mesh.part(), trains, kept.weights);
  const TrainingShare share = ShareOf(answers, layout->dp, mesh.place().dp);
  Batch batch = PackSequences(memory, share.sequences);
  batch.kv_quantization = kept.kv;
  std::vector<int32_t> targets;
  for (const auto& ids : share.sequences) {
    targets.insert(targets.end(), ids.begin() + 1, ids.end());
    targets.push_back(-1);
  }
  PackedWeights packed;
  Tape tape(&ops::Accumulate);
  Context ctx{.allocator = &memory,
              .parameters = &model->parameters(),
              .packed = &packed,
              .tape = kept.kv == ops::KvQuantization::kNone ? &tape : nullptr,
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
  const ForwardOptions inspected{
      .global_tokens = Tensor::Of<int64_t>(memory, {batch.tokens()}, std::span(share.tokens)),
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
  std::map<uint64_t, std::vector<float>> logprobs;
  for (size_t s = 0; s < share.ids.size(); ++s) {
    const float* begin = loss.logprobs.data<float>() + batch.offsets[s];
    logprobs[share.ids[s]] = {begin, begin + share.sequences[s].size() - 1};
  }
  return logprobs;
}

bool SameBits(float a, float b) { return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b); }

// Tokens of the answers in the reference whose logprobs differ from it.
int Differences(const Answers& answers, const std::map<uint64_t, std::vector<float>>& reference,
                int* compared) {
  int differing = 0;
  for (const auto& [id, expected] : reference) {
    const Answer& answer = answers.at(id);
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
  int dp = 1;

  int world() const { return tp * pp * dp; }
};

class ServingRanksTest : public testing::TestWithParam<Case> {};

TEST_P(ServingRanksTest, LogprobsHaveTheBitsOfTheTrainersAtThatLayout) {
  const Case& c = GetParam();
  const config::ParallelConfig sizes = Sizes(c.tp, c.ep, c.pp);
  const auto layout = LayoutOfServing(SpecOf(c.model), sizes, c.world());
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  HostAllocator memory;
  Served served;
  const Answers& answers = served.answers;
  RoutedExperts routed;
  std::barrier together(c.world());
  RunRanks(c.world(), [&](World& world) {
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
      EXPECT_GT(compared, 300 / c.dp);
    }
  });
  for (const auto& [id, answer] : answers) EXPECT_EQ(answer.finish, FinishReason::kLength) << id;
  ExpectCounted(served.expert_tokens, routed.Tokens(answers, ExpertsOf(c.model)));
}

INSTANTIATE_TEST_SUITE_P(
    Models, ServingRanksTest,
    testing::Values(Case{"llama", 2}, Case{"llama", 2, 1, 1, 37}, Case{"llama", 2, 1, 1, 0},
                    Case{"qwen2", 4}, Case{"qwen3_moe", 2, 1, 1, 64},
                    Case{"qwen3_moe", 2, 2, 1, 61}, Case{"gpt_oss", 2, 1, 1, 53},
                    Case{"deepseek_v3", 2, 1, 1, 200}, Case{"deepseek_v3", 4, 2},
                    Case{"llama", 1, 1, 2, 45}, Case{"qwen3_moe", 2, 2, 2, 100},
                    Case{"llama", 1, 1, 1, 40, 2}, Case{"qwen3_moe", 1, 2, 1, 2048, 2},
                    Case{"qwen3_moe", 1, 2, 1, 30, 4}, Case{"deepseek_v3", 1, 4, 1, 50, 4},
                    Case{"gpt_oss", 2, 4, 1, 60, 2}, Case{"gpt_oss", 2, 2, 1, 70, 2},
                    Case{"qwen3_moe", 1, 2, 2, 50, 2}),
    [](const auto& info) {
      const Case& c = info.param;
      return fmt::format("{}Tp{}Ep{}Pp{}Dp{}Tokens{}", c.model, c.tp, c.ep, c.pp, c.dp,
                         c.max_num_batched_tokens);
    });

struct KindCase {
  const char* name;
  const char* model;
  Kept kept = {};
  SpeculationMethod speculation = SpeculationMethod::kNone;
};

class ServingRanksKindTest : public testing::TestWithParam<KindCase> {};

TEST_P(ServingRanksKindTest, LogprobsHaveTheBitsOfTheTrainersOverTwoRanks) {
  const KindCase& c = GetParam();
  const auto layout = LayoutOfServing(SpecOf(c.model), Sizes(2), 2);
  ASSERT_TRUE(layout.ok()) << Message(layout.status());
  HostAllocator memory;
  const auto draft = MakeModel({.allocator = &memory}, c.model, {}, false);
  const auto home = ModelHome::Of(*draft);
  Served served;
  std::barrier together(2);
  RunRanks(2, [&](World& world) {
    EngineOptions options{
        .max_num_seqs = 5, .max_num_batched_tokens = 64, .max_model_len = kContext};
    if (world.rank() == 0) {
      options.speculation = {
          .method = c.speculation, .ngram = {.longest = 3, .shortest = 1}, .draft = home.get()};
    }
    Served own = ServeOverRanks(world, c.model, *layout, options, memory, c.kept);
    if (world.rank() == 0) served = std::move(own);
    together.arrive_and_wait();
    RoutedExperts routed;
    const auto reference =
        Train(world, c.model, Sizes(2), false, served.answers, memory, routed, c.kept);
    int compared = 0;
    EXPECT_EQ(Differences(served.answers, reference, &compared), 0);
    EXPECT_GT(compared, 300);
  });
  EXPECT_EQ(served.accepted > 0, c.speculation != SpeculationMethod::kNone);
}

constexpr ops::KvQuantization kCodes8 = ops::KvQuantization::kInt8,
                              kCodes4 = ops::KvQuantization::kInt4;
INSTANTIATE_TEST_SUITE_P(
    Kinds, ServingRanksKindTest,
    testing::Values(KindCase{"Int8Weights", "llama", {.weights = WeightFormat::kInt8}},
                    KindCase{"Int4Weights", "llama", {.weights = WeightFormat::kInt4}},
                    KindCase{"Int4Experts", "qwen3_moe", {.weights = WeightFormat::kInt4}},
                    KindCase{"Int8Cache", "qwen3_moe", {.kv = kCodes8}},
                    KindCase{"Int4Cache", "qwen3_moe", {.kv = kCodes4}},
                    KindCase{"Int8WeightsAndCache", "qwen3_moe", {WeightFormat::kInt8, kCodes8}},
                    KindCase{"Ngram", "llama", {}, SpeculationMethod::kNgram},
                    KindCase{"DraftModel", "llama", {}, SpeculationMethod::kDraftModel},
                    KindCase{"DraftModelAndInt8Cache",
                             "qwen3_moe",
                             {.kv = kCodes8},
                             SpeculationMethod::kDraftModel}),
    [](const auto& info) { return std::string(info.param.name); });

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
  sizes = Sizes(1);
  sizes.set_context_parallel_size(2);
  EXPECT_THAT(refusal(sizes, 2), testing::HasSubstr("parallel.context_parallel_size 2"));
  EXPECT_THAT(refusal(Sizes(2, 2), 2), testing::HasSubstr("the model has no experts"));
  EXPECT_THAT(refusal(Sizes(1, 1, 3), 3), testing::HasSubstr("num_hidden_layers 2"));
}

}  // namespace
}  // namespace cadre::serving_ranks
