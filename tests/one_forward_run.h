// What tests of the one forward share: a model that was trained a little, loaded to be served and
// to be trained on; requests that are the same wherever they are made; a server's answers to them;
// and their comparison, bit by bit, with the training forward.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <condition_variable>
#include <map>
#include <mutex>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "core/ops/linear_cross_entropy.h"
#include "core/random.h"
#include "model/score.h"
#include "serving/engine.h"
#include "tests/training_run.h"

namespace cadre::one_forward {

using testing_run::TempFolder;

inline constexpr int kPrompts = 200;
inline constexpr int kContext = 256;
inline constexpr int kVocabulary = 512;

inline constexpr char kShape[] =
    "hidden_size: 128, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2, "
    "vocab_size: 512, max_position_embeddings: 256, ";

inline std::string ModelYaml(const std::string& type) {
  const std::map<std::string, const char*> more = {
      {"llama", "intermediate_size: 320"},
      {"ladder", "intermediate_size: 320, residual: ladder, ladder_layers: [1, 2]"},
      {"qwen3_moe",
       "head_dim: 64, intermediate_size: 256, num_experts: 8, num_experts_per_tok: 2, "
       "moe_intermediate_size: 96, norm_topk_prob: true, tie_word_embeddings: true"},
      {"gpt_oss",
       "head_dim: 32, intermediate_size: 96, num_local_experts: 8, num_experts_per_tok: 2, "
       "sliding_window: 40"},
      {"deepseek_v3",
       "num_key_value_heads: 4, intermediate_size: 192, q_lora_rank: 48, kv_lora_rank: 32, "
       "qk_nope_head_dim: 32, qk_rope_head_dim: 16, v_head_dim: 32, n_routed_experts: 8, "
       "num_experts_per_tok: 2, moe_intermediate_size: 64, n_shared_experts: 1, "
       "first_k_dense_replace: 1, n_group: 2, topk_group: 1, norm_topk_prob: true"}};
  std::string shape = kShape;
  if (type == "deepseek_v3") shape.erase(shape.find("num_key_value_heads: 2, "), 24);
  const std::string family = type == "ladder" ? "llama" : type;
  return "model: {model_type: " + family + ", " + shape + more.at(type) + "}\n";
}

// A model after a few dozen steps, loaded twice: to be served, and to be trained on.
class Trained {
 public:
  explicit Trained(const std::string& type) {
    CADRE_CHECK(testing_run::WriteCorpus(folder_ / "corpus", kVocabulary, 400, 3).ok(), "corpus");
    config::TrainConfig config = testing_run::ParseTrainConfig(
        ModelYaml(type) +
        "data: {seq_len: 128}\noptimizer: {lr: 3e-3}\nlr_schedule: {warmup_steps: 5}\n"
        "global_batch_size: 8\nmicro_batch_size: 8\ntrain_steps: 40\n"
        "log: {tensorboard: false}\neval: {interval: 0}\n");
    config.mutable_data()->add_sources()->set_path(folder_ / "corpus");
    auto trainer = testing_run::OpenRun(config, folder_ / "run", 2);
    CADRE_CHECK(trainer.ok(), "{}", Message(trainer.status()));
    const absl::Status ran = (*trainer)->Run();
    CADRE_CHECK(ran.ok(), "{}", Message(ran));
    serving_ = Load(false, WeightFormat::kPanels);  // as `cadre serve` keeps them
    training_ = Load(true);
  }

  // From here on both have the same weights, quantized; there is no backward pass then.
  void Quantize(WeightFormat format) {
    serving_ = Load(false, format);
    training_ = Load(false, format);
  }

  Model& serving() { return *serving_; }
  Model& training() { return *training_; }

  // Logprobs of each token after the first by the training forward with its tape, the sequences
  // packed into one batch. Quantized keys and values have no gradient, so no tape.
  std::vector<std::vector<float>> Train(std::span<const std::vector<int32_t>> sequences,
                                        int threads,
                                        ops::KvQuantization kv = ops::KvQuantization::kNone) {
    PackedWeights packed;
    Tape tape(&ops::Accumulate);
    Context ctx{.allocator = &allocator_,
                .threads = threads,
                .parameters = &training_->parameters(),
                .packed = &packed,
                .tape = kv == ops::KvQuantization::kNone ? &tape : nullptr};
    Batch batch = PackSequences(allocator_, sequences);
    batch.kv_quantization = kv;
    std::vector<int32_t> targets;
    for (const auto& ids : sequences) {
      targets.insert(targets.end(), ids.begin() + 1, ids.end());
      targets.push_back(-1);
    }
    DecoderOutput out = training_->decoder().Forward(ctx, batch);
    auto result = ops::LinearCrossEntropy(
        ctx, out.hidden,
        {.weight = training_->decoder().head(),
         .targets = Tensor::Of<int32_t>(allocator_, {batch.tokens()}, targets),
         .scale = 0.01,
         .z_coefficient = 1e-4});
    std::vector<std::vector<float>> logprobs;
    for (size_t s = 0; s < sequences.size(); ++s) {
      const float* begin = result.logprobs.data<float>() + batch.offsets[s];
      logprobs.emplace_back(begin, begin + sequences[s].size() - 1);
    }
    return logprobs;
  }

  // The same by `cadre score`'s forward, one sequence alone.
  std::vector<float> Score(const std::vector<int32_t>& ids, ops::KvQuantization kv) {
    Context ctx{.allocator = &allocator_, .parameters = &serving_->parameters()};
    Batch batch = PackSequences(allocator_, std::span(&ids, 1));
    batch.kv_quantization = kv;
    Scores scores = ScoreBatch(ctx, serving_->decoder(), batch);
    const float* first = scores.logprobs.data<float>();
    return {first + 1, first + ids.size()};
  }

  // The least change of one weight that bf16 can hold, in the first layer.
  void Nudge() {
    ParameterStore& store = training_->parameters();
    const ParamId id = store.Find("model.layers.0.input_layernorm.weight");
    CADRE_CHECK(id != kNoParam, "no such parameter");
    BF16* weight = store.View(store.buckets()[store.bucket_of(id)].weights, id).data<BF16>();
    weight[0] = BF16(static_cast<float>(weight[0]) * 1.01f);
    store.WeightsChanged();
  }

 private:
  std::unique_ptr<Model> Load(bool gradients, WeightFormat format = WeightFormat::kStored) {
    Context ctx{.allocator = &allocator_};
    auto model = LoadModel(ctx, folder_ / "run/checkpoints/latest",
                           {.dtype = DType::kBF16, .gradients = gradients, .weights = format});
    CADRE_CHECK(model.ok(), "{}", Message(model.status()));
    return std::move(*model);
  }

  TempFolder folder_;
  HostAllocator allocator_;
  std::unique_ptr<Model> serving_, training_;
};

struct Answer {
  std::vector<int32_t> ids;  // the prompt, then what was sampled
  std::vector<float> logprobs;
  std::vector<TokenLogprob> prompt;
  bool finished = false;
};

class Collector : public EventSink {
 public:
  explicit Collector(std::map<uint64_t, Answer>& answers)
      : answers_(answers), left_(answers.size()) {}

  void OnStep(std::vector<TokenEvent> events) override {
    std::lock_guard lock(mutex_);
    for (TokenEvent& event : events) {
      Answer& answer = answers_.at(event.request_id);
      if (!event.prompt_logprobs.empty()) answer.prompt = std::move(event.prompt_logprobs);
      if (event.token >= 0) {
        answer.ids.push_back(event.token);
        answer.logprobs.push_back(event.logprob);
      }
      if (event.finish == FinishReason::kNone) continue;
      answer.finished = event.finish == FinishReason::kLength;
      --left_;
    }
    done_.notify_one();
  }

  void Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return left_ == 0; });
  }

 private:
  std::map<uint64_t, Answer>& answers_;
  std::mutex mutex_;
  std::condition_variable done_;
  size_t left_;
};

// How a set of prompts is served.
struct Case {
  int max_num_seqs = 16;
  int64_t max_num_batched_tokens = 2048;
  int block_size = 16;
  int workers = 0;
  int threads = 1;
  int64_t kv_tokens = 0;  // 0: enough for all
  bool tiers = false;     // what leaves the KV cache goes to memory and to disk
  ops::KvQuantization kv = ops::KvQuantization::kNone;
  SpeculationOptions speculation;
};

inline std::string Describe(const Case& c) {
  return fmt::format(
      "{} sequences, {} tokens a step, blocks of {}, {} workers, {} threads, {} KV of kind {}, "
      "speculation {}",
      c.max_num_seqs, c.max_num_batched_tokens, c.block_size, c.workers, c.threads, c.kv_tokens,
      static_cast<int>(c.kv), static_cast<int>(c.speculation.method));
}

// Prompt `i`: 1 to 180 tokens, every fourth one greedy.
inline GenerationRequest Request(int i) {
  const RandomKey key(11, "prompts");
  auto below = [&](uint64_t draw, int n) {
    return static_cast<int>(key.Uniform(draw, static_cast<uint64_t>(i)) * n);
  };
  auto prompt = std::make_shared<std::vector<int32_t>>(1 + below(0, i % 3 == 0 ? 180 : 70));
  for (size_t t = 0; t < prompt->size(); ++t) (*prompt)[t] = below(10 + t, kVocabulary);
  SamplingParams sampling{.temperature = i % 4 == 0 ? 0.0f : 1.0f,
                          .seed = static_cast<uint64_t>(i),
                          .max_tokens = 4 + below(1, 36),
                          .logprobs = 0};
  if (i % 5 == 0) sampling.prompt_logprobs = 0;
  return {.id = static_cast<uint64_t>(i), .prompt = std::move(prompt), .sampling = sampling};
}

using Requests = std::vector<GenerationRequest>;

inline Requests RequestsOf(std::span<const int> prompts) {
  Requests requests;
  for (int i : prompts) requests.push_back(Request(i));
  return requests;
}

// One engine's answers to all waves, each submitted when the one before was answered.
inline std::map<uint64_t, Answer> Serve(Model& model, const Case& c,
                                        std::span<const Requests> waves,
                                        EngineStats* stats = nullptr) {
  EngineOptions options{.threads = c.threads,
                        .max_num_seqs = c.max_num_seqs,
                        .max_num_batched_tokens = c.max_num_batched_tokens,
                        .growth_reserve_tokens = 0,  // so that sequences do give way
                        .max_model_len = kContext,
                        .block_size = c.block_size,
                        .kv_quantization = c.kv,
                        .attention_workers = c.workers,
                        .speculation = c.speculation};
  if (c.tiers) {
    options.kv_tiers = {
        .host_bytes = 1 << 20, .disk_bytes = 16 << 20, .disk_path = testing::TempDir()};
  }
  if (c.kv_tokens > 0) {
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model.spec().layers) {
      layouts.push_back(KvLayoutOf(layer.attention, model.dtype(), c.block_size, c.kv));
    }
    options.kv_cache_memory_bytes =
        c.kv_tokens / c.block_size * static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts));
  }
  auto engine = Engine::Create(model, options);
  CADRE_CHECK(engine.ok(), "{}", Message(engine.status()));
  std::map<uint64_t, Answer> answers;
  for (const Requests& requests : waves) {
    std::map<uint64_t, Answer> wave;
    for (const GenerationRequest& request : requests) wave[request.id].ids = *request.prompt;
    auto collector = std::make_shared<Collector>(wave);
    const absl::Status submitted = (*engine)->Submit(requests, collector);
    CADRE_CHECK(submitted.ok(), "{}", Message(submitted));
    collector->Wait();
    answers.merge(wave);
  }
  if (c.kv_tokens > 0) {
    EXPECT_GT((*engine)->Stats().num_preemptions, 0) << Describe(c);
  }
  if (waves.size() > 1) {
    EXPECT_GT((*engine)->Stats().prefix_cache_hits, 0) << Describe(c);
  }
  EXPECT_EQ((*engine)->Stats().kv_cache_usage, 0) << Describe(c);
  (*engine)->Stop();
  if (stats != nullptr) *stats = (*engine)->Stats();
  return answers;
}

inline bool SameBits(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// Tokens whose logprob differs from the reference's, prompt and sampled.
inline int Differences(const Answer& answer, const std::vector<float>& reference, int* compared) {
  int differing = 0;
  const size_t first = answer.ids.size() - answer.logprobs.size();
  for (size_t i = 0; i < answer.logprobs.size(); ++i, ++*compared) {
    differing += !SameBits(answer.logprobs[i], reference[first - 1 + i]);
  }
  for (size_t i = 1; i < answer.prompt.size(); ++i, ++*compared) {
    differing += answer.prompt[i].token != answer.ids[i] ||
                 !SameBits(answer.prompt[i].logprob, reference[i - 1]);
  }
  return differing;
}

// Serves the prompts and compares every token with the training forward over all of the finished
// sequences at once, and with that of each alone.
inline int Compare(Trained& trained, const Case& c, std::span<const Requests> waves, bool alone) {
  const std::map<uint64_t, Answer> answers = Serve(trained.serving(), c, waves);
  std::map<uint64_t, GenerationRequest> requests;
  for (const Requests& wave : waves) {
    for (const GenerationRequest& request : wave) requests[request.id] = request;
  }
  int compared = 0;
  std::vector<std::vector<int32_t>> group;
  std::vector<const Answer*> members;
  auto flush = [&] {
    const auto reference = trained.Train(group, c.threads % 2 + 1, c.kv);
    for (size_t s = 0; s < group.size(); ++s) {
      EXPECT_EQ(Differences(*members[s], reference[s], &compared), 0) << Describe(c);
    }
    group.clear();
    members.clear();
  };
  for (const auto& [id, answer] : answers) {
    EXPECT_TRUE(answer.finished) << id;
    const GenerationRequest& request = requests.at(id);
    EXPECT_EQ(static_cast<int>(answer.logprobs.size()), request.sampling.max_tokens);
    EXPECT_EQ(answer.prompt.size(),
              request.sampling.prompt_logprobs >= 0 ? request.prompt->size() : 0);
    if (alone) {
      EXPECT_EQ(Differences(answer, trained.Score(answer.ids, c.kv), &compared), 0) << Describe(c);
    }
    group.push_back(answer.ids);
    members.push_back(&answer);
    if (group.size() == 16) flush();
  }
  if (!group.empty()) flush();
  return compared;
}

inline int Compare(Trained& trained, const Case& c, std::span<const int> prompts, bool alone) {
  const Requests requests = RequestsOf(prompts);
  return Compare(trained, c, std::span(&requests, 1), alone);
}

// What shares keys with `prompts`, which came before: each of them again, each cut short, each gone
// on with, and three choices of a new one.
inline Requests Relatives(std::span<const int> prompts) {
  Requests relatives;
  for (int i : prompts) {
    GenerationRequest request = Request(i);
    const auto add = [&](const std::vector<int32_t>& prompt) {
      request.id = 1000 + relatives.size();
      request.sampling.max_tokens = 3 + i % 9;
      request.prompt = std::make_shared<std::vector<int32_t>>(prompt);
      relatives.push_back(request);
    };
    std::vector<int32_t> prompt = *request.prompt;
    add(prompt);
    for (int more = 0; more < 5 + i % 29; ++more) prompt.push_back((i + more * 5) % kVocabulary);
    add(prompt);
    prompt.resize(1 + request.prompt->size() / 2);
    add(prompt);
    request = Request(i + kPrompts);
    for (uint32_t choice = 0; choice < 3; ++choice) {
      request.id = 1000 + relatives.size();
      request.sampling.choice = choice;
      relatives.push_back(request);
    }
  }
  return relatives;
}

}  // namespace cadre::one_forward
