#include "serving/evicting_sequence.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/host_allocator.h"
#include "model/initialize.h"
#include "model/model.h"
#include "serving/kv_plan.h"
#include "serving/step_plan.h"

namespace cadre {
namespace {

constexpr int64_t kTokens = 600, kBudget = 60, kBlocks = 100, kBlock = 16;
constexpr char kConfig[] =
    R"({"model_type": "llama", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48,
  "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
  "max_position_embeddings": 1024, "tie_word_embeddings": false, "initializer_range": 0.2})";

class EvictingSequenceTest : public testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<HfConfig> config = ParseHfConfig(kConfig, "config.json");
    ASSERT_TRUE(config.ok()) << Message(config.status());
    model_ = *CreateModel(ctx_, *std::move(config), {.dtype = DType::kF32});
    ctx_.parameters = &model_->parameters();
    InitializeParameters(ctx_, 3);
    for (int32_t i = 0; i < kTokens; ++i) prompt_.push_back((i * i * 5 + i * 7) % 61);
    std::vector<ops::KvLayout> layouts;
    for (const LayerSpec& layer : model_->spec().layers) {
      layouts.push_back(KvLayoutOf(layer.attention, DType::kF32, kBlock));
    }
    cache_ = std::make_unique<KvCache>(allocator_, layouts, kBlocks);
  }

  // Leaves the prompt's first tokens to be found.
  void ReadPlainly(size_t tokens) {
    KvSequence kv;
    const std::span<const int32_t> prefix = std::span(prompt_).first(tokens);
    cache_->Attach(kv, {}, prefix, 0);
    ASSERT_TRUE(cache_->Extend(kv, static_cast<int64_t>(tokens)));
    const PlannedTokens reads{&kv, prefix, 0};
    const StepPlan plan = PlanTokens(std::span(&reads, 1), *cache_);
    const Batch batch = MakeBatch(allocator_, plan, cache_->pool());
    model_->decoder().ForwardLayers(ctx_, {0, 3}, {}, batch);
    cache_->Commit(kv, prefix);
    cache_->Free(kv);
  }

  // Other sequences take every block, cached prefixes' too, and write it.
  void TakeAllBlocks() {
    KvSequence other;
    ASSERT_TRUE(cache_->Extend(other, kBlocks * kBlock));
    std::memset(cache_->pool().data(0), 0x5a, cache_->pool().bytes());
    cache_->Free(other);
  }

  struct Result {
    std::vector<float> hidden;
    std::vector<std::vector<int32_t>> positions;
    int steps = 0;
    bool operator==(const Result&) const = default;
  };
  // In small steps; it gives way after `pause` of them.
  Result Read(const char* policy, int pause) {
    EvictingSequence sequence(cache_->pool(), *MakeEvictionPolicy(policy),
                              {.tokens = kTokens, .layers = 3, .budget = kBudget}, 8);
    KvSequence own;
    const int64_t shared = sequence.AttachPrefix(*cache_, {}, prompt_);
    EXPECT_GE(shared, 64);
    Hold(sequence, own);
    Result result;
    for (; !sequence.read(); ++result.steps) {
      if (result.steps == pause) {
        const int64_t unread = sequence.unread();
        sequence.GiveWay(*cache_);
        cache_->Free(own);
        EXPECT_EQ(cache_->free_blocks(), kBlocks);
        TakeAllBlocks();
        EXPECT_EQ(sequence.AttachPrefix(*cache_, {}, prompt_), pause > 0 ? shared : 0);
        if (pause > 0) {
          EXPECT_EQ(sequence.unread(), unread) << "nothing is read twice";
        }
        Hold(sequence, own);
      }
      sequence.Read({.ctx = ctx_, .model = *model_, .cache = *cache_, .prompt = prompt_}, 1);
    }
    const Tensor& hidden = sequence.last_hidden();
    result.hidden.assign(hidden.data<float>(), hidden.data<float>() + hidden.numel());
    for (int layer = 0; layer < 3; ++layer) {
      for (int64_t head = 0; head < 2; ++head) {
        result.positions.push_back(sequence.kept().Positions(layer, head));
      }
    }
    sequence.Release(*cache_);
    cache_->Free(own);
    EXPECT_EQ(cache_->free_blocks(), kBlocks);
    return result;
  }

  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 1};
  std::unique_ptr<Model> model_;
  std::vector<int32_t> prompt_;
  std::unique_ptr<KvCache> cache_;

 private:
  void Hold(EvictingSequence& sequence, KvSequence& own) {
    ASSERT_TRUE(cache_->Extend(own, sequence.blocks() * kBlock));
    sequence.Hold(*cache_, own.blocks());
  }
};

TEST_F(EvictingSequenceTest, GivesWayWithASharedPrefixAndReadsOn) {
  for (const char* policy : {"snapkv", "tova", "cake"}) {
    for (const size_t shared : {64, 600}) {
      ReadPlainly(shared);
      const Result alone = Read(policy, -1);
      EXPECT_GE(alone.steps, 3);
      for (int pause = 1; pause < alone.steps; ++pause) {
        TakeAllBlocks();
        ReadPlainly(shared);
        EXPECT_EQ(Read(policy, pause), alone) << policy << " after " << pause;
      }
      TakeAllBlocks();
    }
  }
}

TEST_F(EvictingSequenceTest, GivesWayBeforeItHasReadAnything) {
  ReadPlainly(600);
  const Result alone = Read("snapkv", -1);
  TakeAllBlocks();
  ReadPlainly(600);
  const Result after = Read("snapkv", 0);
  EXPECT_EQ(after.positions, alone.positions);
  EXPECT_EQ(after.hidden, alone.hidden);
}

}  // namespace
}  // namespace cadre
