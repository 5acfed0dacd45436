// Every slot's bytes against the tokens that it should hold, and what is kept against a plain
// simulation of each policy.
#include "memory/kept_kv.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "core/host_allocator.h"
#include "memory/kv_cache.h"

namespace cadre {
namespace {

constexpr int kLayers = 3, kHeads = 2, kDim = 4, kBlock = 16;
constexpr const char* kPolicies[] = {"streaming_llm", "h2o", "snapkv", "pyramidkv", "tova", "cake"};

std::unique_ptr<KvEvictionPolicy> Make(std::string_view name) {
  auto policy = MakeEvictionPolicy(name);
  CADRE_CHECK(policy.ok(), "{}", Message(policy.status()));
  return std::move(*policy);
}

KeyAttention RandomAttention(std::mt19937& random, int64_t keys) {
  std::uniform_real_distribution<float> uniform(0, 1);
  KeyAttention attention{.kv_heads = kHeads, .keys = keys};
  for (int64_t i = 0; i < kHeads * keys; ++i) {
    attention.mean.push_back(uniform(random));
    attention.variance.push_back(uniform(random) * 1e-3f);
  }
  attention.entropy = 100 * uniform(random) + 1;
  attention.total_variance = 1 + 20 * uniform(random);
  return attention;
}

class KeptKvTest : public testing::Test {
 protected:
  static constexpr int64_t kBlocks = 64;

  void Start(const char* policy, int64_t tokens, int64_t budget, int64_t answer) {
    policy_ = Make(policy);
    shape_ = {.tokens = tokens, .layers = kLayers, .budget = budget};
    kept_.emplace(pool_, *policy_, shape_, answer);
    held_ = Blocks(kept_->blocks_needed());
    kept_->Hold(held_);
  }
  std::vector<int32_t> Blocks(int64_t count) {
    std::vector<int32_t> blocks;
    for (int64_t i = 0; i < count; ++i) blocks.push_back(*pool_.Allocate());
    return blocks;
  }

  static float Value(int layer, int64_t position, int64_t head, int64_t d) {
    return static_cast<float>(((layer * 4096 + position) * kHeads + head) * kDim + d);
  }
  void Write(int layer, int64_t slot, int64_t position) {
    if (slot < 0) return;
    std::vector<float> row;
    for (int64_t h = 0; h < kHeads; ++h) {
      for (int64_t d = 0; d < kDim; ++d) row.push_back(Value(layer, position, h, d));
    }
    const Tensor x = Tensor::Of<float>(allocator_, {1, kHeads, kDim}, row);
    ops::WriteKv(
        ctx_,
        {.k = x, .v = x, .slots = std::span(&slot, 1), .data = pool_.data(0), .layout = kLayout});
  }

  // The prompt, its first tokens in others' blocks.
  void Read(int64_t shared_blocks = 0, int swap_at = -1) {
    const std::vector<int32_t> shared = Blocks(shared_blocks);
    const bool raw = policy_->positions_in_cache();
    for (int layer = 0; layer < kLayers; ++layer) {
      kept_->BeginLayer(layer, shared);
      for (int64_t i = 0; i < shape_.tokens; ++i) {
        Write(layer, raw ? kept_->RawSlot(layer, i) : kept_->Slot(layer, i), i);
      }
      if (layer == swap_at) Swap();
      attention_.push_back(
          RandomAttention(random_, policy_->observed() == KvEvictionPolicy::Queries::kWindow
                                       ? shape_.tokens - policy_->window()
                                       : shape_.tokens));
      kept_->EndLayer(layer, attention_.back());
      for (int l = 0; l <= layer; ++l) ExpectBytes(l);
    }
    for (const int32_t block : shared) pool_.Release(block);
  }

  // Other blocks, and nothing left in the old ones.
  void Swap() {
    const std::vector<int32_t> others = Blocks(kept_->blocks_needed());
    kept_->SwapOut();
    for (const int32_t block : held_) {
      for (int layer = 0; layer < kLayers; ++layer) {
        std::fill_n(pool_.data(layer) + block * kLayout.block_bytes(), kLayout.block_bytes(),
                    std::byte{0x55});
      }
      pool_.Release(block);
    }
    held_ = others;
    kept_->Hold(held_);
  }

  void ExpectBytes(int layer) {
    for (int64_t h = 0; h < kHeads; ++h) {
      std::vector<float> expected, found;
      for (const int32_t position : kept_->Positions(layer, h)) {
        expected.push_back(Value(layer, position, h, 1));
      }
      for (int64_t i = 0; i < kept_->count(layer); ++i) {
        const int64_t slot = kept_->Slot(layer, i);
        const std::byte* head =
            pool_.data(0) + slot / kBlock * kLayout.block_bytes() + h * kLayout.head_bytes();
        found.push_back(static_cast<float>(ops::KvKey(kLayout, head, slot % kBlock, 1)));
        EXPECT_EQ(ops::KvValue(kLayout, head, slot % kBlock, 1), found.back());
      }
      std::ranges::sort(found);
      ASSERT_EQ(found, expected) << "layer " << layer << " head " << h;
    }
  }

  // What one eviction after the last layer would keep.
  std::vector<int32_t> OneShot(int layer, int64_t head) {
    std::vector<double> preferences;
    for (const KeyAttention& a : attention_) preferences.push_back(policy_->Preference(a));
    const int64_t budget = policy_->Budgets(shape_, preferences)[static_cast<size_t>(layer)];
    const std::vector<float> scores = policy_->Scores(attention_[static_cast<size_t>(layer)]);
    const int64_t n = attention_[static_cast<size_t>(layer)].keys;
    const int64_t candidates = shape_.tokens - policy_->Recent(shape_.budget);
    return SelectKept(
        std::span(scores).subspan(static_cast<size_t>(head * n), static_cast<size_t>(candidates)),
        std::min(budget, candidates), shape_.tokens);
  }

  static constexpr ops::KvLayout kLayout{.dtype = DType::kF32,
                                         .kv_heads = kHeads,
                                         .key_dim = kDim,
                                         .value_dim = kDim,
                                         .block_size = kBlock};
  HostAllocator allocator_;
  Context ctx_{.allocator = &allocator_, .threads = 1};
  KvBlockPool pool_{allocator_, {kLayout, kLayout, kLayout}, kBlocks};
  std::unique_ptr<KvEvictionPolicy> policy_;
  EvictionShape shape_;
  std::optional<KeptKv> kept_;
  std::vector<int32_t> held_;
  std::vector<KeyAttention> attention_;
  std::mt19937 random_{7};
};

class EachPolicy : public KeptKvTest, public testing::WithParamInterface<const char*> {};

TEST_P(EachPolicy, KeepsInCascadeWhatOneEvictionKeeps) {
  Start(GetParam(), 300, 70, 40);
  Read();
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int64_t h = 0; h < kHeads; ++h) {
      EXPECT_EQ(kept_->Positions(layer, h), OneShot(layer, h)) << layer;
    }
  }
}

TEST_P(EachPolicy, HoldsAtMostTheBudgetAndALayer) {
  for (const int64_t tokens : {100, 300, 301, 320}) {
    attention_.clear();
    Start(GetParam(), tokens, 70, 0);
    Read();
    // Units are whole: one more for each layer at most.
    const int64_t units = (70 * kLayers + tokens) / kBlock + kLayers + 2;
    EXPECT_LE(kept_->peak_units(), units + (policy_->positions_in_cache() ? 5 : 0)) << tokens;
    for (const int32_t block : held_) pool_.Release(block);
  }
}

TEST_P(EachPolicy, ASharedPrefixIsCopiedAndAStopInTheMiddleLosesNothing) {
  for (const int64_t budget : {70, 400}) {  // 400: nothing leaves
    attention_.clear();
    random_.seed(7);
    Start(GetParam(), 300, budget, 40);
    const bool shares = !policy_->positions_in_cache();
    Read(shares ? 8 : 0, 1);
    for (int layer = 0; layer < kLayers; ++layer) {
      for (int64_t h = 0; h < kHeads && budget < 300; ++h) {
        EXPECT_EQ(kept_->Positions(layer, h), OneShot(layer, h)) << layer;
      }
    }
    for (const int32_t block : held_) pool_.Release(block);
    EXPECT_EQ(pool_.free_blocks(), kBlocks);
  }
}

// As the policy would have it with its keys in a plain row.
struct Simulated {
  std::vector<int32_t> positions;
  std::vector<float> scores;
};

TEST_P(EachPolicy, AnswersGrowOrStayAsThePolicySays) {
  constexpr int64_t kAnswer = 120;
  for (const int64_t tokens : {int64_t{200}, int64_t{60}}) {
    attention_.clear();
    Start(GetParam(), tokens, 70, kAnswer);
    Read();
    std::vector<Simulated> rows(kLayers * kHeads);
    for (int layer = 0; layer < kLayers; ++layer) {
      const KeyAttention& prompt = attention_[static_cast<size_t>(layer)];
      const std::vector<float> all = policy_->Scores(prompt);
      for (int64_t h = 0; h < kHeads; ++h) {
        Simulated& row = rows[static_cast<size_t>(layer * kHeads + h)];
        row.positions = kept_->Positions(layer, h);
        for (const int32_t p : row.positions) {
          row.scores.push_back(p < prompt.keys ? all[static_cast<size_t>(h * prompt.keys + p)] : 0);
        }
      }
    }
    std::vector<int64_t> most;
    for (int l = 0; l < kLayers; ++l) {
      most.push_back(kept_->evicts_prompt() ? kept_->count(l) : std::max<int64_t>(tokens, 70));
    }
    for (int64_t t = 0; t < kAnswer; ++t) {
      const auto position = static_cast<int32_t>(tokens + t);
      kept_->Append(position);
      for (int layer = 0; layer < kLayers; ++layer) {
        Write(layer, kept_->NewestSlot(layer), position);
        const int64_t n = kept_->count(layer);
        const KeyAttention by_slot = RandomAttention(random_, n);
        // By age: what a slot holds says whose attention it is.
        KeyAttention by_age{.kv_heads = kHeads, .keys = n};
        for (int64_t h = 0; h < kHeads; ++h) {
          rows[static_cast<size_t>(layer * kHeads + h)].positions.push_back(position);
          rows[static_cast<size_t>(layer * kHeads + h)].scores.push_back(0);
          for (const int32_t p : rows[static_cast<size_t>(layer * kHeads + h)].positions) {
            for (int64_t i = 0; i < n; ++i) {
              const int64_t slot = kept_->Slot(layer, i);
              const std::byte* head =
                  pool_.data(0) + slot / kBlock * kLayout.block_bytes() + h * kLayout.head_bytes();
              if (ops::KvKey(kLayout, head, slot % kBlock, 0) == Value(layer, p, h, 0)) {
                by_age.mean.push_back(by_slot.mean[static_cast<size_t>(h * n + i)]);
              }
            }
          }
        }
        ASSERT_EQ(by_age.mean.size(), static_cast<size_t>(kHeads * n));
        kept_->Settle(ctx_, layer, by_slot);
        if (!policy_->evicts_answers()) continue;
        std::vector<float> scores;
        for (int64_t h = 0; h < kHeads; ++h) {
          const Simulated& row = rows[static_cast<size_t>(layer * kHeads + h)];
          scores.insert(scores.end(), row.scores.begin(), row.scores.end());
        }
        policy_->Update(by_age, scores);
        for (int64_t h = 0; h < kHeads; ++h) {
          Simulated& row = rows[static_cast<size_t>(layer * kHeads + h)];
          row.scores.assign(scores.begin() + h * n, scores.begin() + (h + 1) * n);
          if (n <= most[static_cast<size_t>(layer)]) continue;
          const int64_t candidates = n - policy_->Recent(70);
          const std::vector<int32_t> left = SelectKept(
              std::span(row.scores).first(static_cast<size_t>(candidates)), candidates - 1, n);
          Simulated next;
          for (const int32_t i : left) {
            next.positions.push_back(row.positions[static_cast<size_t>(i)]);
            next.scores.push_back(row.scores[static_cast<size_t>(i)]);
          }
          row = next;
        }
      }
      if (t == 50) Swap();
      for (int layer = 0; layer < kLayers; ++layer) {
        ASSERT_NO_FATAL_FAILURE(ExpectBytes(layer)) << "token " << t;
        for (int64_t h = 0; h < kHeads; ++h) {
          ASSERT_EQ(kept_->Positions(layer, h),
                    rows[static_cast<size_t>(layer * kHeads + h)].positions)
              << "token " << t;
        }
      }
    }
    for (const int32_t block : held_) pool_.Release(block);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EachPolicy, testing::ValuesIn(kPolicies),
                         [](const auto& info) { return std::string(info.param); });

TEST(WeighKeysTest, AveragesOverQueriesAndTheHeadsOfAGroup) {
  HostAllocator allocator;
  // 4 heads, 2 KV heads, one key, 2 queries; p of head h: 0.1 (h + 1) and 0.2 (h + 1).
  std::vector<float> sum, square, entropy;
  for (int h = 1; h <= 4; ++h) {
    const float a = 0.1f * static_cast<float>(h), b = 0.2f * static_cast<float>(h);
    sum.push_back(a + b);
    square.push_back(a * a + b * b);
    entropy.push_back(static_cast<float>(h));
  }
  const ops::AttentionStatistics statistics{Tensor::Of<float>(allocator, {4, 1}, sum),
                                            Tensor::Of<float>(allocator, {4, 1}, square),
                                            Tensor::Of<float>(allocator, {4}, entropy)};
  KeyAttention mean{.kv_heads = 2}, summed{.kv_heads = 2};
  WeighKeys(statistics, 2, false, &mean);
  EXPECT_NEAR(mean.mean[0], (0.15 + 0.3) / 2, 1e-6);
  EXPECT_NEAR(mean.mean[1], (0.45 + 0.6) / 2, 1e-6);
  // Of two numbers, half the square of their distance.
  EXPECT_NEAR(mean.variance[1], (0.045 + 0.08) / 2, 1e-6);
  EXPECT_NEAR(mean.total_variance, 0.005 + 0.02 + 0.045 + 0.08, 1e-6);
  EXPECT_NEAR(mean.entropy, 10, 1e-6);
  WeighKeys(statistics, 2, true, &summed);
  EXPECT_NEAR(summed.mean[0], (0.3 + 0.6) / 2, 1e-6);
}

}  // namespace
}  // namespace cadre
