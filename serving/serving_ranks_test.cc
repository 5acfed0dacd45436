// A server over several ranks, as threads: the logprobs that it returns are, bit for bit, those of
// the training forward at the same tensor-parallel size, and a rank that is lost is named.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <bit>
#include <condition_variable>
#include <map>
#include <mutex>
#include <numeric>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "core/random.h"
#include "model/initialize.h"
#include "model/layout_needs.h"
#include "model/model.h"
#include "parallel/test_ranks.h"
#include "serving/engine.h"
#include "serving/follower.h"
#include "serving/serving_layout.h"

namespace cadre {
namespace {

constexpr int kContext = 192;
constexpr int kVocabulary = 509;  // parts of ranks are unequal
constexpr int kRequests = 14;

std::string ConfigJson(const std::string& type) {
  std::string shape =
      R"("vocab_size": 509, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 192, "initializer_range": 0.2, )";
  const std::map<std::string, std::string> more = {
      {"llama", R"("num_key_value_heads": 2, "intermediate_size": 96)"},
      {"qwen2", R"("num_key_value_heads": 1, "intermediate_size": 96)"},
      {"qwen3_moe",
       R"("num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 96, "num_experts": 6,
          "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": true,
          "tie_word_embeddings": true)"},
      {"gpt_oss",
       R"("num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 48, "num_local_experts": 4,
          "num_experts_per_tok": 2, "sliding_window": 40)"},
      {"deepseek_v3",
       R"("num_key_value_heads": 4, "intermediate_size": 96, "q_lora_rank": 48, "kv_lora_rank": 32,
          "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "n_routed_experts": 8,
          "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1,
          "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "norm_topk_prob": true)"}};
  return "{\"model_type\": \"" + type + "\", " + shape + more.at(type) + "}";
}

// Fresh weights: the same whole model on every layout.
std::unique_ptr<Model> MakeModel(Context ctx, const std::string& type, const ModelPart& part,
                                 bool gradients) {
  auto config = ParseHfConfig(ConfigJson(type), "config.json");
  CADRE_CHECK(config.ok(), "{}", Message(config.status()));
  ModelOptions options{.dtype = DType::kBF16, .gradients = gradients};
  options.decoder.part = part;
  auto model = CreateModel(ctx, *std::move(config), options);
  CADRE_CHECK(model.ok(), "{}", Message(model.status()));
  ctx.parameters = &(*model)->parameters();
  InitializeParameters(ctx, 5);
  return *std::move(model);
}

DecoderSpec SpecOf(const std::string& type) {
  auto config = ParseHfConfig(ConfigJson(type), "config.json");
  CADRE_CHECK(config.ok(), "{}", Message(config.status()));
  auto spec = ResolveModelConfig(config->model);
  CADRE_CHECK(spec.ok(), "{}", Message(spec.status()));
  return *std::move(spec);
}

int64_t ExpertsOf(const std::string& type) { return SpecOf(type).layers.back().moe.router.experts; }

config::ParallelConfig Sizes(int tp, int ep = 1, int pp = 1) {
  config::ParallelConfig sizes;
  sizes.set_tensor_parallel_size(tp);
  sizes.set_pipeline_parallel_size(pp);
  sizes.set_expert_parallel_size(ep);
  if (ep > 1) sizes.set_expert_tensor_parallel_size(tp / ep);
  return sizes;
}

struct Answer {
  std::vector<int32_t> ids;  // the prompt, then what was sampled
  std::vector<float> logprobs;
  std::vector<TokenLogprob> prompt;
  FinishReason finish = FinishReason::kNone;
  absl::Status error;
};
using Answers = std::map<uint64_t, Answer>;
struct Served {
  Answers answers;
  std::vector<LayerExpertTokens> expert_tokens;
};

class Collector : public EventSink {
 public:
  explicit Collector(Answers& answers) : answers_(answers), left_(answers.size()) {}

  void OnStep(std::vector<TokenEvent> events) override {
    const std::lock_guard lock(mutex_);
    for (TokenEvent& event : events) {
      Answer& answer = answers_.at(event.request_id);
      if (!event.prompt_logprobs.empty()) answer.prompt = std::move(event.prompt_logprobs);
      if (event.token >= 0) {
        answer.ids.push_back(event.token);
        answer.logprobs.push_back(event.logprob);
      }
      answer.finish = event.finish;
      answer.error = event.error;
      left_ -= event.finish != FinishReason::kNone;
    }
    done_.notify_one();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  Answers& answers_;
  std::mutex mutex_;
  std::condition_variable done_;
  size_t left_;
};

// Prompts of 1 to 99 tokens, every fourth one greedy, every third one scored.
GenerationRequest Request(int i) {
  const RandomKey key(11, "prompts");
  const auto below = [&](uint64_t draw, int n) {
    return static_cast<int>(key.Uniform(draw, static_cast<uint64_t>(i)) * n);
  };
  auto prompt = std::make_shared<std::vector<int32_t>>(1 + below(0, 99));
  for (size_t t = 0; t < prompt->size(); ++t) (*prompt)[t] = below(10 + t, kVocabulary);
  SamplingParams sampling{.temperature = i % 4 == 0 ? 0.0f : 1.0f,
                          .seed = static_cast<uint64_t>(i),
                          .max_tokens = 3 + below(1, 30),
                          .logprobs = 0};
  if (i % 3 == 0) sampling.prompt_logprobs = 0;
  return {.id = static_cast<uint64_t>(i), .prompt = std::move(prompt), .sampling = sampling};
}

Answers Ask(Engine& engine) {
  Answers answers;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < kRequests; ++i) {
    requests.push_back(Request(i));
    answers[requests.back().id].ids = *requests.back().prompt;
  }
  auto collector = std::make_shared<Collector>(answers);
  const absl::Status submitted = engine.Submit(std::move(requests), collector);
  CADRE_CHECK(submitted.ok(), "{}", Message(submitted));
  collector->Wait();
  return answers;
}

// Rank 0's answers; the others', which follow it, are none.
Served ServeOverRanks(World& world, const std::string& type, const Layout& layout,
                      EngineOptions options, HostAllocator& memory) {
  ServingRanks ranks(world, layout, nullptr);
  options.ranks = &ranks;
  const auto model = MakeModel({.allocator = &memory}, type, ranks.part(), false);
  if (!ranks.leader()) {
    const absl::Status followed = FollowSteps(*model, options, ranks);
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
    EXPECT_THAT((*engine)->Health().reason, testing::HasSubstr("rank 1"));
    EXPECT_EQ((*engine)->Submit({Request(99)}, nullptr).code(), absl::StatusCode::kUnavailable);
    (*engine)->Stop();
    ASSERT_EQ(failures.size(), 1u);
    EXPECT_TRUE(absl::IsUnavailable(failures[0]));
  });
}

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
}  // namespace cadre
