// For tests of a server over several ranks, as threads: small models of every kind, requests that
// are the same wherever they are made, and a server's answers.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/host_allocator.h"
#include "core/random.h"
#include "model/initialize.h"
#include "model/model.h"
#include "parallel/test_ranks.h"
#include "serving/engine.h"
#include "serving/follower.h"
#include "serving/serving_layout.h"

namespace cadre::serving_ranks {

inline constexpr int kContext = 192;
inline constexpr int kVocabulary = 509;  // parts of ranks are unequal
inline constexpr int kRequests = 14;

inline std::string ConfigJson(const std::string& type) {
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
inline std::unique_ptr<Model> MakeModel(Context ctx, const std::string& type, const ModelPart& part,
                                        bool gradients,
                                        WeightFormat weights = WeightFormat::kStored) {
  auto config = ParseHfConfig(ConfigJson(type), "config.json");
  CADRE_CHECK(config.ok(), "{}", Message(config.status()));
  ModelOptions options{.dtype = DType::kBF16, .gradients = gradients, .weights = weights};
  options.decoder.part = part;
  auto model = CreateModel(ctx, *std::move(config), options);
  CADRE_CHECK(model.ok(), "{}", Message(model.status()));
  ctx.parameters = &(*model)->parameters();
  InitializeParameters(ctx, 5);
  return *std::move(model);
}

inline DecoderSpec SpecOf(const std::string& type) {
  auto config = ParseHfConfig(ConfigJson(type), "config.json");
  CADRE_CHECK(config.ok(), "{}", Message(config.status()));
  auto spec = ResolveModelConfig(config->model);
  CADRE_CHECK(spec.ok(), "{}", Message(spec.status()));
  return *std::move(spec);
}

inline int64_t ExpertsOf(const std::string& type) {
  return SpecOf(type).layers.back().moe.router.experts;
}

inline config::ParallelConfig Sizes(int tp, int ep = 1, int pp = 1) {
  config::ParallelConfig sizes;
  sizes.set_tensor_parallel_size(tp);
  sizes.set_pipeline_parallel_size(pp);
  sizes.set_expert_parallel_size(ep);
  if (ep > 1) sizes.set_expert_tensor_parallel_size(std::max(tp / ep, 1));
  return sizes;
}

struct Answer {
  std::vector<int32_t> ids;  // the prompt, then what was sampled
  std::vector<float> embedding;
  std::vector<float> logprobs;
  std::vector<TokenLogprob> prompt;
  FinishReason finish = FinishReason::kNone;
  absl::Status error;
};
using Answers = std::map<uint64_t, Answer>;
class Collector : public EventSink {
 public:
  explicit Collector(Answers& answers) : answers_(answers), left_(answers.size()) {}

  void OnStep(std::vector<TokenEvent> events) override {
    const std::lock_guard lock(mutex_);
    for (TokenEvent& event : events) {
      Answer& answer = answers_.at(event.request_id);
      if (!event.prompt_logprobs.empty()) answer.prompt = std::move(event.prompt_logprobs);
      if (!event.embedding.empty()) answer.embedding = std::move(event.embedding);
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
inline GenerationRequest Request(int i) {
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

inline Answers Ask(Engine& engine, std::vector<GenerationRequest> requests) {
  Answers answers;
  for (const GenerationRequest& request : requests) answers[request.id].ids = *request.prompt;
  auto collector = std::make_shared<Collector>(answers);
  const absl::Status submitted = engine.Submit(std::move(requests), collector);
  CADRE_CHECK(submitted.ok(), "{}", Message(submitted));
  collector->Wait();
  return answers;
}

inline Answers Ask(Engine& engine) {
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < kRequests; ++i) requests.push_back(Request(i));
  return Ask(engine, std::move(requests));
}

}  // namespace cadre::serving_ranks
