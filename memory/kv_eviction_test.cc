#include "memory/kv_eviction.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

namespace cadre {
namespace {

using testing::ElementsAre;
using testing::FloatEq;
using testing::HasSubstr;

std::unique_ptr<KvEvictionPolicy> Make(std::string_view name, const CakeOptions& cake = {}) {
  auto policy = MakeEvictionPolicy(name, cake);
  CADRE_CHECK(policy.ok(), "{}", Message(policy.status()));
  return std::move(*policy);
}

// Attention of `heads` to `keys`, deterministic and different everywhere.
KeyAttention Attention(int64_t heads, int64_t keys, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(0, 1);
  KeyAttention attention{.kv_heads = heads, .keys = keys};
  for (int64_t i = 0; i < heads * keys; ++i) {
    attention.mean.push_back(uniform(random));
    attention.variance.push_back(uniform(random) * 1e-3f);
  }
  attention.entropy = 100 * uniform(random) + 1;
  attention.total_variance = std::pow(10.0, 3 * uniform(random));
  return attention;
}

std::vector<int32_t> KeptOf(const KvEvictionPolicy& policy, const KeyAttention& attention,
                            int64_t head, int64_t keep, int64_t tokens, int64_t recent) {
  const std::vector<float> scores = policy.Scores(attention);
  const auto row = std::span(scores).subspan(static_cast<size_t>(head * attention.keys),
                                             static_cast<size_t>(tokens - recent));
  return SelectKept(row, keep, tokens);
}

TEST(SelectKeptTest, KeepsTheBestAndAllThatFollow) {
  const std::vector<float> scores = {0.1f, 0.9f, 0.5f, 0.9f, 0.2f};
  EXPECT_THAT(SelectKept(scores, 2, 7), ElementsAre(1, 3, 5, 6));
  EXPECT_THAT(SelectKept(scores, 0, 6), ElementsAre(5));
  EXPECT_THAT(SelectKept(scores, 5, 5), ElementsAre(0, 1, 2, 3, 4));
}

TEST(SelectKeptTest, OfEqualsTheOlderAndWhatIsNoNumberLast) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(SelectKept(std::vector<float>{nan, 1, 1, 1}, 2, 4), ElementsAre(1, 2));
  EXPECT_THAT(SelectKept(std::vector<float>{nan, 1, nan, nan}, 2, 4), ElementsAre(0, 1));
}

TEST(SelectKeptTest, AgreesWithSorting) {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    std::vector<float> scores(1 + random() % 40);
    for (float& s : scores) s = static_cast<float>(random() % 7);
    const int64_t keep = random() % (scores.size() + 1);
    std::vector<int32_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    order.resize(static_cast<size_t>(keep));
    std::ranges::sort(order);
    EXPECT_EQ(SelectKept(scores, keep, static_cast<int64_t>(scores.size())), order);
  }
}

TEST(PooledOverNeighboursTest, IsTorchsAverageOfFive) {
  EXPECT_THAT(PooledOverNeighbours({5, 0, 0, 0, 0, 10, 1}, 1),
              ElementsAre(FloatEq(1), FloatEq(1), FloatEq(1), FloatEq(2), FloatEq(2.2f),
                          FloatEq(2.2f), FloatEq(2.2f)));
  // Rows do not meet.
  EXPECT_THAT(PooledOverNeighbours({5, 0, 0, 10}, 2),
              ElementsAre(FloatEq(1), FloatEq(1), FloatEq(2), FloatEq(2)));
}

TEST(KvEvictionPolicyTest, NamesWhatThereIs) {
  for (const char* name : {"streaming_llm", "h2o", "snapkv", "pyramidkv", "tova", "cake"}) {
    EXPECT_EQ(Make(name)->name(), name);
  }
  EXPECT_THAT(Message(MakeEvictionPolicy("lru").status()),
              HasSubstr("kv_eviction: 'lru', allowed are streaming_llm, h2o"));
}

TEST(KvEvictionPolicyTest, NoLayerGetsMoreThanThereIsAndAllTogetherTheBudget) {
  for (const char* name : {"streaming_llm", "h2o", "snapkv", "pyramidkv", "tova", "cake"}) {
    const auto policy = Make(name);
    std::mt19937 random(11);
    for (int round = 0; round < 200; ++round) {
      EvictionShape shape{.layers = 1 + static_cast<int64_t>(random() % 12)};
      shape.budget = policy->least_budget() + random() % 300;
      shape.tokens = shape.budget + policy->window() + 1 + random() % 2000;
      ASSERT_TRUE(policy->Evicts(shape));
      std::vector<double> preferences;
      const int64_t recent = policy->Recent(shape.budget);
      std::vector<int64_t> before;
      for (int64_t l = 0; l < shape.layers; ++l) {
        preferences.push_back(policy->Preference(Attention(1, 4, random())));
        const std::vector<int64_t> budgets = policy->Budgets(shape, preferences);
        ASSERT_EQ(budgets.size(), preferences.size());
        int64_t sum = 0;
        for (size_t i = 0; i < budgets.size(); ++i) {
          EXPECT_GE(budgets[i], 0) << name;
          EXPECT_LE(budgets[i], shape.tokens - recent) << name;
          if (i < before.size()) {
            EXPECT_LE(budgets[i], before[i]) << name << ": a budget grew";
          }
          sum += budgets[i];
        }
        EXPECT_LE(sum, (shape.budget - recent) * shape.layers) << name;
        before = budgets;
      }
    }
  }
}

TEST(KvEvictionPolicyTest, StreamingKeepsTheFirstFourAndTheNewest) {
  const auto policy = Make("streaming_llm");
  const EvictionShape shape{.tokens = 20, .layers = 2, .budget = 7};
  const std::vector<double> one = {1};
  EXPECT_THAT(policy->Budgets(shape, one), ElementsAre(4));
  KeyAttention none{.kv_heads = 1, .keys = 20};
  EXPECT_THAT(KeptOf(*policy, none, 0, 4, 20, policy->Recent(7)),
              ElementsAre(0, 1, 2, 3, 17, 18, 19));
  EXPECT_FALSE(policy->Evicts({.tokens = 7, .layers = 2, .budget = 7}));
}

TEST(KvEvictionPolicyTest, H2OAddsUpAndKeepsHalfForTheNewest) {
  const auto policy = Make("h2o");
  KeyAttention sums{.kv_heads = 1, .keys = 6, .mean = {3, 1, 2, 5, .5f, .1f}};
  EXPECT_EQ(policy->Recent(4), 2);
  EXPECT_THAT(KeptOf(*policy, sums, 0, 2, 6, 2), ElementsAre(0, 3, 4, 5));
  std::vector<float> scores = {3, 5, .5f, .1f, 0};
  policy->Update({.kv_heads = 1, .keys = 5, .mean = {0, 0, 1, .25f, .5f}}, scores);
  EXPECT_THAT(scores, ElementsAre(3, 5, 1.5f, .35f, .5f));
}

TEST(KvEvictionPolicyTest, TovaKeepsTheSameForAllHeads) {
  const auto policy = Make("tova");
  KeyAttention newest{.kv_heads = 2, .keys = 4, .mean = {.4f, .1f, .2f, .3f, 0, .5f, .1f, .4f}};
  for (int64_t head : {0, 1}) {
    EXPECT_THAT(KeptOf(*policy, newest, head, 3, 4, 0), ElementsAre(0, 1, 3));
  }
}

TEST(KvEvictionPolicyTest, SnapKvPoolsWhatTheWindowSaw) {
  const auto policy = Make("snapkv");
  KeyAttention window{.kv_heads = 1, .keys = 12, .mean = std::vector<float>(12, 0.f)};
  window.mean[7] = 1;  // its neighbours come with it
  EXPECT_THAT(KeptOf(*policy, window, 0, 5, 44, 32).front(), 5);
  EXPECT_EQ(KeptOf(*policy, window, 0, 5, 44, 32).size(), 37u);
  EXPECT_FALSE(policy->evicts_answers());
}

TEST(KvEvictionPolicyTest, PyramidFallsOnAStraightLine) {
  const auto policy = Make("pyramidkv");
  const EvictionShape shape{.tokens = 4000, .layers = 5, .budget = 232};
  EXPECT_THAT(policy->Budgets(shape, std::vector<double>(5, 1.0)),
              ElementsAre(390, 295, 200, 105, 10));
}

TEST(CakeTest, PrefersByEntropyAndVariance) {
  const auto policy = Make("cake", {.tau1 = 2, .tau2 = 0.5});
  KeyAttention attention{.entropy = 16, .total_variance = 3};
  EXPECT_DOUBLE_EQ(policy->Preference(attention), 4 * 9);
  // A score is mean + 200 variance; alone in its row it is pooled over five places.
  KeyAttention key{.kv_heads = 1, .keys = 1, .mean = {.5f}, .variance = {.01f}};
  EXPECT_FLOAT_EQ(policy->Scores(key)[0], 2.5f / 5);
}

TEST(CakeTest, SharesTheBudgetAndSpreadsTheExcess) {
  const auto policy = Make("cake");
  const EvictionShape shape{.tokens = 132, .layers = 4, .budget = 57};  // 25 a layer, at most 100
  EXPECT_THAT(policy->Budgets(shape, std::vector<double>{1}), ElementsAre(100));
  EXPECT_THAT(policy->Budgets(shape, std::vector<double>{1, 1, 1, 1}), ElementsAre(25, 25, 25, 25));
  EXPECT_THAT(policy->Budgets(shape, std::vector<double>{4, 3, 2, 1}), ElementsAre(40, 30, 20, 10));
  EXPECT_THAT(policy->Budgets(shape, std::vector<double>{0, 0, 0, 0}), ElementsAre(25, 25, 25, 25));
}

TEST(CakeTest, AnExcessOfALaterLayerBringsNothingBack) {
  const auto policy = Make("cake");
  const EvictionShape shape{.tokens = 92, .layers = 4, .budget = 57};  // 100 in all, at most 60
  EXPECT_THAT(policy->Budgets(shape, std::vector<double>{1, 99, 99}), ElementsAre(0, 49, 49));
  const auto last = policy->Budgets(shape, std::vector<double>{1, 99, 99, 1e4});
  EXPECT_EQ(last[0], 0);
  EXPECT_EQ(last[3], 60);
}

TEST(CakeTest, EvictingAfterEachLayerKeepsWhatEvictingOnceKeeps) {
  const auto policy = Make("cake");
  constexpr int64_t kHeads = 2, kTokens = 300, kLayers = 6, kCandidates = kTokens - 32;
  const EvictionShape shape{.tokens = kTokens, .layers = kLayers, .budget = 72};
  for (unsigned seed = 0; seed < 20; ++seed) {
    std::vector<KeyAttention> layers;
    std::vector<double> preferences;
    std::vector<std::vector<int32_t>> cascade;  // of (layer, head), positions
    for (int64_t m = 0; m < kLayers; ++m) {
      layers.push_back(Attention(kHeads, kCandidates, seed * 100 + m));
      preferences.push_back(policy->Preference(layers.back()));
      for (int64_t h = 0; h < kHeads; ++h) {
        cascade.emplace_back(kTokens);
        std::iota(cascade.back().begin(), cascade.back().end(), 0);
      }
      const auto budgets = policy->Budgets(shape, preferences);
      for (int64_t l = 0; l <= m; ++l) {
        const std::vector<float> scores = policy->Scores(layers[l]);
        for (int64_t h = 0; h < kHeads; ++h) {
          std::vector<int32_t>& kept = cascade[l * kHeads + h];
          std::vector<float> stored;
          for (size_t i = 0; i + 32 < kept.size(); ++i) {
            stored.push_back(scores[h * kCandidates + kept[i]]);
          }
          std::vector<int32_t> next;
          for (int32_t i : SelectKept(stored, budgets[l], static_cast<int64_t>(kept.size()))) {
            next.push_back(kept[i]);
          }
          kept = next;
        }
      }
    }
    const auto budgets = policy->Budgets(shape, preferences);
    for (int64_t l = 0; l < kLayers; ++l) {
      for (int64_t h = 0; h < kHeads; ++h) {
        EXPECT_EQ(cascade[l * kHeads + h], KeptOf(*policy, layers[l], h, budgets[l], kTokens, 32))
            << "layer " << l << " head " << h;
      }
    }
  }
}

}  // namespace
}  // namespace cadre
