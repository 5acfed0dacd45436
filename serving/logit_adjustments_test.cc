#include "serving/logit_adjustments.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "serving/sampler.h"

namespace cadre {
namespace {

using Ids = std::vector<int32_t>;

std::vector<float> Adjusted(const SamplingParams& params, const Ids& prompt, const Ids& generated,
                            std::vector<float> logits = {1, -1, 2, -2, 0.5f}) {
  AdjustLogits(params, prompt, generated, logits);
  return logits;
}

TEST(LogitAdjustments, PresenceAndFrequencyCountWhatWasGenerated) {
  const Ids prompt = {0, 0, 4}, generated = {2, 3, 2, 2};
  EXPECT_EQ(Adjusted({.presence_penalty = 0.5f}, prompt, generated),
            (std::vector<float>{1, -1, 1.5f, -2.5f, 0.5f}));
  EXPECT_EQ(Adjusted({.frequency_penalty = 0.5f}, prompt, generated),
            (std::vector<float>{1, -1, 0.5f, -2.5f, 0.5f}));
  EXPECT_EQ(Adjusted({.frequency_penalty = -1}, prompt, generated),
            (std::vector<float>{1, -1, 5, -1, 0.5f}));
}

TEST(LogitAdjustments, RepetitionCountsThePromptToo) {
  EXPECT_EQ(Adjusted({.repetition_penalty = 2}, {0, 1}, {2, 2, 3}),
            (std::vector<float>{0.5f, -2, 1, -4, 0.5f}));
}

TEST(LogitAdjustments, TheBiasComesFirst) {
  const SamplingParams params{.repetition_penalty = 2, .logit_bias = {{0, -3}, {4, 100}, {77, 1}}};
  EXPECT_EQ(Adjusted(params, {0}, {}), (std::vector<float>{-4, -1, 2, -2, 100.5f}));
}

TEST(LogitAdjustments, OddIdsAndLogitsDoNoHarm) {
  const float inf = std::numeric_limits<float>::infinity();
  const SamplingParams params{
      .repetition_penalty = 2, .frequency_penalty = 1, .presence_penalty = 1};
  const auto got = Adjusted(params, {-1, 900}, {0, 1, 2}, {std::nanf(""), inf, -inf, 3});
  EXPECT_TRUE(std::isnan(got[0]));
  EXPECT_EQ(got[1], inf);
  EXPECT_EQ(got[2], -inf);
  EXPECT_EQ(got[3], 3);
}

TEST(LogitAdjustments, AreSeenOnlyWhereAskedFor) {
  EXPECT_FALSE(AdjustsLogits({}));
  EXPECT_TRUE(AdjustsLogits({.repetition_penalty = 1.1f}));
  EXPECT_TRUE(AdjustsLogits({.frequency_penalty = 0.1f}));
  EXPECT_TRUE(AdjustsLogits({.presence_penalty = -0.1f}));
  EXPECT_TRUE(AdjustsLogits({.logit_bias = {{1, 2}}}));
}

TEST(LogitAdjustments, SteerTheSamplerButNotItsInput) {
  const std::vector<float> logits = {1, -1, 2, -2, 0.5f};
  const Ids prompt = {0}, generated = {2, 2};
  SampleInput input{.logits = logits, .prompt = prompt, .generated = generated};
  EXPECT_EQ(SampleToken({.temperature = 0}, input), 2);
  EXPECT_EQ(SampleToken({.temperature = 0, .presence_penalty = 1.5f}, input), 0);
  EXPECT_EQ(SampleToken({.temperature = 0, .logit_bias = {{3, 5}}}, input), 3);
  EXPECT_EQ(logits, (std::vector<float>{1, -1, 2, -2, 0.5f}));
  // A bias of -100 leaves nothing to draw; +100 everything.
  for (int64_t position = 0; position < 200; ++position) {
    input.position = position;
    EXPECT_NE(SampleToken({.logit_bias = {{2, -100}}, .seed = 3}, input), 2);
    EXPECT_EQ(SampleToken({.logit_bias = {{1, 100}}, .seed = 3}, input), 1);
  }
}

}  // namespace
}  // namespace cadre
