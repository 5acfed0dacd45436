// Layouts drawn at random agree with one process, and what was saved under one goes on under
// another.
#include <functional>

#include <gtest/gtest.h>

#include "tests/layout_draw.h"
#include "training/layout_needs.h"

namespace cadre::testing_run {
namespace {

void CompareAtRandom(int layouts) {
  const uint32_t seed = SeedOfDraws();
  SCOPED_TRACE(fmt::format("--gtest_random_seed={}", seed));
  Runs runs;
  LayoutDraw draw(runs, seed);
  for (int i = 0; i < layouts; ++i) {
    const Case c = draw.Next();
    const std::string drawn = testing::PrintToString(c);
    SCOPED_TRACE(drawn);
    Say(drawn);
    const LayoutRun& expected = runs.Reference(c, "f64");
    const LayoutRun got = runs.Train(c, "f64");
    const Gap gap = LargestGap(expected, got);
    EXPECT_LE(gap.relative, 1e-10) << gap.parameter;
    EXPECT_LE(LargestLossGap(expected, got), 1e-9);
    EXPECT_LE(LargestEvaluationGap(expected, got), 1e-9);
  }
}

TEST(RandomLayouts, AgreeWithOneProcess) { CompareAtRandom(3); }
TEST(FullRandomLayouts, AgreeWithOneProcess) { CompareAtRandom(16); }

struct Pair {
  Case first, second;
};

Layout LayoutOf(const Runs& runs, const Case& c) {
  return *LayoutOfRun(runs.Config(c, "f64"), c.world);
}

bool Shards(const Layout& layout) { return layout.dp * layout.cp > 1; }

// Two of them are of the kinds that are asked for most: a whole machine's run that ends on one
// rank, and other stages of ZeRO.
Pair DrawPair(const Runs& runs, LayoutDraw& draw, int number) {
  const auto first_that = [&](std::string_view model,
                              const std::function<bool(const Case&)>& fits) {
    for (;;) {
      const Case c = draw.Next(model);
      if (fits(c)) return c;
    }
  };
  if (number == 0) {
    const Case first = first_that("", [](const Case& c) { return c.world == 8; });
    return {first, draw.Under(first, 1)};
  }
  if (number != 1) {
    const Case first = draw.Next();
    return {first, draw.Under(first)};
  }
  const Case first = first_that("dense", [&](const Case& c) { return Shards(LayoutOf(runs, c)); });
  const int stage = LayoutOf(runs, first).zero_stage;
  for (;;) {
    const Case second = draw.Under(first);
    const Layout layout = LayoutOf(runs, second);
    if (Shards(layout) && layout.zero_stage != stage) return {first, second};
  }
}

void ContinueAtRandom(int pairs) {
  const uint32_t seed = SeedOfDraws();
  SCOPED_TRACE(fmt::format("--gtest_random_seed={}", seed));
  Runs runs;
  LayoutDraw draw(runs, seed);
  for (int i = 0; i < pairs; ++i) {
    const auto [first, second] = DrawPair(runs, draw, i);
    const std::string drawn =
        testing::PrintToString(first) + " -> " + testing::PrintToString(second);
    SCOPED_TRACE(drawn);
    Say(drawn);
    const Runs::Halves halves = runs.Continue(first, second, "f64");
    EXPECT_EQ(halves.stayed.size(), kSteps - kSteps / 2);
    EXPECT_LE(LargestLossGap({.losses = halves.stayed}, {.losses = halves.went_on}), 1e-9);
  }
}

TEST(RandomPairs, GoOnAsIfTheyStayed) { ContinueAtRandom(3); }
TEST(FullRandomPairs, GoOnAsIfTheyStayed) { ContinueAtRandom(12); }

}  // namespace
}  // namespace cadre::testing_run
