// For the engine's tests: an engine on a small random mixture of experts, and a sink that keeps
// what it gets.
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/host_allocator.h"
#include "model/initialize.h"
#include "model/model.h"
#include "serving/engine.h"

namespace cadre {

inline constexpr int64_t kContext = 96;
inline constexpr int kBlock = 16;
inline constexpr char kConfig[] =
    R"({"model_type": "qwen3_moe", "vocab_size": 61, "hidden_size": 32,
  "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 24, "max_position_embeddings": 96, "tie_word_embeddings": false})";

// Keeps every event. While held, it keeps the engine between two steps.
class Sink : public EventSink {
 public:
  void OnStep(std::vector<TokenEvent> events) override {
    std::unique_lock lock(mutex_);
    for (TokenEvent& event : events) {
      EXPECT_FALSE(finished(event.request_id)) << "an event after the last one";
      events_[event.request_id].push_back(std::move(event));
    }
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
  }

  void Hold(bool held) {
    std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  void WaitForEvents(uint64_t id, size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return events_[id].size() >= count; });
  }
  std::vector<TokenEvent> WaitForEnd(uint64_t id) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return finished(id); });
    return events_[id];
  }
  size_t events(uint64_t id) {
    std::lock_guard lock(mutex_);
    return events_[id].size();
  }

 private:
  bool finished(uint64_t id) {
    return !events_[id].empty() && events_[id].back().finish != FinishReason::kNone;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, std::vector<TokenEvent>> events_;
  bool held_ = false;
};

inline std::vector<int32_t> Tokens(const std::vector<TokenEvent>& events) {
  std::vector<int32_t> tokens;
  for (const TokenEvent& event : events) {
    if (event.token >= 0) tokens.push_back(event.token);
  }
  return tokens;
}

// `length` ids, others for each `start`.
inline GenerationRequest Request(uint64_t id, int64_t length, int32_t start,
                                 SamplingParams sampling) {
  auto prompt = std::make_shared<std::vector<int32_t>>();
  for (int64_t i = 0; i < length; ++i)
    prompt->push_back(static_cast<int32_t>((start * 17 + i * 7) % 61));
  return {.id = id, .prompt = prompt, .sampling = std::move(sampling)};
}

class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    model_ = *NewModel(allocator_);
    Start({});
  }

  static absl::StatusOr<std::unique_ptr<Model>> NewModel(Allocator& allocator) {
    Context ctx{.allocator = &allocator, .threads = 1};
    CADRE_ASSIGN_OR_RETURN(HfConfig config, ParseHfConfig(kConfig, "config.json"));
    CADRE_ASSIGN_OR_RETURN(
        std::unique_ptr<Model> model,
        CreateModel(ctx, std::move(config),
                    {.dtype = DType::kF32, .decoder = {.max_position = kContext}}));
    ctx.parameters = &model->parameters();
    InitializeParameters(ctx, 3);
    return model;
  }

  void Start(EngineOptions options) {
    engine_.reset();
    auto engine = Engine::Create(*model_, options);
    ASSERT_TRUE(engine.ok()) << Message(engine.status());
    engine_ = *std::move(engine);
  }

  int64_t BytesOfBlocks(int64_t blocks) {
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model_->spec().layers) {
      layouts.push_back(KvLayoutOf(layer.attention, model_->dtype(), kBlock));
    }
    return blocks * static_cast<int64_t>(KvBlockPool::BytesPerBlock(layouts));
  }

  std::vector<TokenEvent> Run(GenerationRequest request) {
    auto sink = std::make_shared<Sink>();
    const uint64_t id = request.id;
    absl::Status status = engine_->Submit({std::move(request)}, sink);
    EXPECT_TRUE(status.ok()) << Message(status);
    return status.ok() ? sink->WaitForEnd(id) : std::vector<TokenEvent>();
  }
  absl::StatusCode Refusal(GenerationRequest request) {
    return engine_->Submit({std::move(request)}, std::make_shared<Sink>()).code();
  }

  HostAllocator allocator_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace cadre
