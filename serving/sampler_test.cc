#include "serving/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

namespace cadre {
namespace {

const std::vector<float> kLogits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

std::map<int32_t, double> Frequencies(SamplingParams params, std::span<const int32_t> banned = {}) {
  constexpr int kDraws = 20000;
  std::map<int32_t, double> counts;
  for (int64_t i = 0; i < kDraws; ++i) {
    counts[SampleToken(params, {.logits = kLogits, .position = i, .banned = banned})] +=
        1.0 / kDraws;
  }
  return counts;
}

TEST(Sampler, GreedyTakesTheMostLikelyAndTheLowerIdOfEquals) {
  SamplingParams greedy{.temperature = 0};
  EXPECT_EQ(SampleToken(greedy, {.logits = kLogits}), 1);
  std::vector<float> equal = {0, 2, 2};
  EXPECT_EQ(SampleToken(greedy, {.logits = equal}), 1);
  std::vector<int32_t> banned = {1};
  EXPECT_EQ(SampleToken(greedy, {.logits = kLogits, .banned = banned}), 3);
}

TEST(Sampler, ABanOnEverythingIsIgnored) {
  const std::vector<int32_t> all = {0, 1, 2, 3, 900};
  EXPECT_EQ(SampleToken({.temperature = 0}, {.logits = kLogits, .banned = all}), 1);
  auto got = Frequencies({.temperature = 1, .seed = 5}, all);
  for (int32_t t = 0; t < 4; ++t) EXPECT_NEAR(got[t], std::exp(kLogits[t]), 0.015) << t;
}

TEST(Sampler, AMaskLeavesWhatItAllows) {
  const std::vector<uint64_t> mask = {0b1001};
  EXPECT_EQ(SampleToken({.temperature = 0}, {.logits = kLogits, .allowed = mask}), 3);
  // The allowed ones share the whole; a ban on all of them is ignored.
  const std::vector<int32_t> both = {0, 3};
  double zeros = 0;
  for (int64_t i = 0; i < 20000; ++i) {
    const int32_t token =
        SampleToken({.temperature = 1, .seed = 5},
                    {.logits = kLogits, .position = i, .banned = both, .allowed = mask});
    ASSERT_TRUE(token == 0 || token == 3);
    zeros += token == 0;
  }
  EXPECT_NEAR(zeros / 20000, 0.25, 0.015);
}

TEST(Sampler, EveryRowOfLogitsGivesAnId) {
  const float nan = std::nanf(""), inf = HUGE_VALF;
  const std::vector<std::pair<std::vector<float>, std::vector<int32_t>>> rows = {
      {{nan, nan, nan}, {0, 1, 2}},    {{nan, 1, nan}, {1}}, {{nan, -1e30f, 2}, {2}},
      {{-inf, -inf, -inf}, {0, 1, 2}}, {{inf, 1, nan}, {0}}, {{1, inf, inf}, {1, 2}},
      {{-inf, nan, -inf}, {0, 1, 2}}};
  const SamplingParams kinds[] = {{.temperature = 0},
                                  {.temperature = 1},
                                  {.temperature = 1, .top_k = 2},
                                  {.temperature = 1, .top_p = 0.5f},
                                  {.temperature = 1, .min_p = 0.5f}};
  for (const auto& [logits, allowed] : rows) {
    for (const SamplingParams& params : kinds) {
      for (int64_t position = 0; position < 20; ++position) {
        const int32_t token = SampleToken(params, {.logits = logits, .position = position});
        EXPECT_TRUE(std::ranges::count(allowed, token)) << token << testing::PrintToString(logits);
      }
    }
    EXPECT_EQ(TopLogprobs(logits, 0, 1)[0].token, allowed[0]) << testing::PrintToString(logits);
  }
}

TEST(Sampler, DrawsFollowTheDistribution) {
  auto got = Frequencies({.temperature = 1, .seed = 5});
  for (int32_t t = 0; t < 4; ++t) EXPECT_NEAR(got[t], std::exp(kLogits[t]), 0.015) << t;
}

TEST(Sampler, TemperatureSharpens) {
  auto got = Frequencies({.temperature = 0.5, .seed = 5});
  const double total = 0.01 + 0.16 + 0.04 + 0.09;
  EXPECT_NEAR(got[1], 0.16 / total, 0.015);
  EXPECT_NEAR(got[0], 0.01 / total, 0.015);
}

TEST(Sampler, FiltersKeepTheHead) {
  auto top_k = Frequencies({.temperature = 1, .top_k = 2, .seed = 1});
  EXPECT_EQ(top_k.size(), 2u);
  EXPECT_NEAR(top_k[1], 4.0 / 7, 0.015);
  auto top_p = Frequencies({.temperature = 1, .top_p = 0.65f, .seed = 1});
  EXPECT_EQ(top_p.size(), 2u);
  EXPECT_TRUE(top_p.contains(3));
  auto min_p = Frequencies({.temperature = 1, .min_p = 0.6f, .seed = 1});
  EXPECT_EQ(min_p.size(), 2u);
  std::vector<int32_t> banned = {1, 2, 3};
  EXPECT_EQ(Frequencies({.temperature = 1, .seed = 1}, banned).size(), 1u);
}

TEST(Sampler, DrawsAreKeyedBySeedChoiceAndPosition) {
  auto draws = [](uint64_t seed, uint32_t choice) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < 32; ++i) {
      tokens.push_back(SampleToken({.temperature = 1, .seed = seed, .choice = choice},
                                   {.logits = kLogits, .position = i}));
    }
    return tokens;
  };
  EXPECT_EQ(draws(1, 0), draws(1, 0));
  EXPECT_NE(draws(1, 0), draws(2, 0));
  EXPECT_NE(draws(1, 0), draws(1, 1));
}

TEST(Sampler, TopLogprobsAreSorted) {
  auto top = TopLogprobs(kLogits, 0.0f, 3);
  ASSERT_EQ(top.size(), 3u);
  EXPECT_EQ(top[0].token, 1);
  EXPECT_EQ(top[1].token, 3);
  EXPECT_EQ(top[2].token, 2);
  EXPECT_FLOAT_EQ(top[0].logprob, std::log(0.4f));
  EXPECT_EQ(TopLogprobs(kLogits, 0.0f, 9).size(), 4u);
  EXPECT_TRUE(TopLogprobs(kLogits, 0.0f, 0).empty());
  for (int rank = 1; rank <= 3; ++rank) EXPECT_EQ(RankOf(kLogits, top[rank - 1].token), rank);
  const std::vector<float> ties = {2, std::nanf(""), 2, 5};
  top = TopLogprobs(ties, 0, 4);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(top[i].token, (std::vector<int32_t>{3, 0, 2, 1})[i]);
  EXPECT_EQ(RankOf(ties, 0), 2);
  EXPECT_EQ(RankOf(ties, 2), 3);
  EXPECT_EQ(RankOf(ties, 1), 4);
}

}  // namespace
}  // namespace cadre
