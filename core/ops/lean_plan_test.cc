#include "core/ops/lean_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/random.h"

namespace cadre::ops {
namespace {

std::vector<int64_t> TilesOf(const LeanPlan& plan) {
  std::vector<int64_t> counts;
  for (int64_t worker = 0; worker < plan.workers(); ++worker) {
    int64_t count = 0;
    for (const LeanPiece& piece : plan.PiecesOf(worker)) count += piece.end - piece.begin;
    counts.push_back(count);
  }
  return counts;
}

int64_t Spread(const std::vector<int64_t>& counts) {
  return std::ranges::max(counts) - std::ranges::min(counts);
}

// The windows' pieces cover each output's tiles once, in order, and say where partials lie.
void ExpectCovers(const std::vector<LeanPlan>& plans, std::span<const int64_t> tiles) {
  std::vector<int64_t> done(tiles.size(), 0), seen(tiles.size(), 0);
  for (const LeanPlan& plan : plans) {
    std::vector<int64_t> pieces(plan.shared.size(), 0);
    int64_t kept = 0;
    for (const LeanPiece& piece : plan.pieces) {
      ASSERT_EQ(piece.begin, done[piece.output]);
      ASSERT_LE(piece.end, tiles[piece.output]);
      done[piece.output] = piece.end;
      ++seen[piece.output];
      if (piece.shared < 0) {
        EXPECT_EQ(piece.end, tiles[piece.output]);
        EXPECT_EQ(piece.kept, -1);
        continue;
      }
      const LeanShared& shared = plan.shared[piece.shared];
      EXPECT_EQ(shared.output, piece.output);
      if (pieces[piece.shared]++ == 0) {
        EXPECT_EQ(piece.kept, -1);
        EXPECT_EQ(shared.begin, piece.end);
        EXPECT_EQ(shared.kept, kept);
      } else {
        EXPECT_EQ(piece.kept, kept);
        EXPECT_EQ(piece.kept - shared.kept, piece.begin - shared.begin);
        kept += piece.end - piece.begin;
      }
      if (pieces[piece.shared] == shared.pieces) {
        EXPECT_EQ(shared.end, piece.end);
        EXPECT_EQ(shared.complete, piece.end == tiles[piece.output]);
      }
    }
    EXPECT_EQ(kept, plan.kept);
    for (size_t s = 0; s < pieces.size(); ++s) EXPECT_EQ(pieces[s], plan.shared[s].pieces);
  }
  for (size_t o = 0; o < tiles.size(); ++o) {
    EXPECT_EQ(done[o], tiles[o]) << o;
    if (tiles[o] == 0) {
      EXPECT_EQ(seen[o], 1) << o;
    }
  }
}

// One context of 16,384 tokens and seven of 256, 2 KV heads: whole heads would leave most of eight
// workers without work.
TEST(LeanPlan, ARaggedBatchIsCutEvenly) {
  std::vector<int64_t> tiles(16, 4);
  tiles[0] = tiles[1] = 256;
  const int64_t total = std::accumulate(tiles.begin(), tiles.end(), int64_t{0});
  const LeanPlan plan = MakeLeanPlan(tiles, 8);
  const std::vector<int64_t> counts = TilesOf(plan);
  EXPECT_LE(Spread(counts), 1);
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), total);
  ExpectCovers({plan}, tiles);

  // The best that heads left whole allow: the longest first, each to who has least.
  std::vector<int64_t> whole(8, 0), sorted = tiles;
  std::ranges::sort(sorted, std::greater());
  for (int64_t count : sorted) *std::ranges::min_element(whole) += count;
  EXPECT_GE(static_cast<double>(std::ranges::max(whole)), 2.0 * static_cast<double>(total) / 8);
}

TEST(LeanPlan, AnyWorkersAnyOutputs) {
  const RandomKey key(3, "lean_plan_test");
  for (uint64_t run = 0; run < 300; ++run) {
    auto below = [&](uint64_t draw, int64_t n) {
      return static_cast<int64_t>(key.Uniform(draw, run) * static_cast<float>(n));
    };
    std::vector<int64_t> tiles(static_cast<size_t>(1 + below(0, 12)));
    for (size_t o = 0; o < tiles.size(); ++o) {
      tiles[o] = below(10 + o, 3) == 0 ? below(30 + o, 3) : below(50 + o, 80);
    }
    const int64_t workers = 1 + below(1, 16);
    const LeanPlan plan = MakeLeanPlan(tiles, workers);
    EXPECT_EQ(plan.workers(), workers);
    EXPECT_LE(Spread(TilesOf(plan)), 1);
    ExpectCovers({plan}, tiles);

    const int64_t limit = workers + below(2, 40);
    const std::vector<LeanPlan> plans = MakeLeanPlans(tiles, workers, limit);
    ExpectCovers(plans, tiles);
    for (const LeanPlan& part : plans) {
      EXPECT_LE(part.kept, limit);
      EXPECT_LE(Spread(TilesOf(part)), 1);
    }
  }
}

TEST(LeanPlan, OneWorkerKeepsNothing) {
  const std::vector<int64_t> tiles = {5, 0, 70};
  const LeanPlan plan = MakeLeanPlan(tiles, 1);
  EXPECT_EQ(plan.kept, 0);
  EXPECT_TRUE(plan.shared.empty());
  EXPECT_EQ(plan.pieces.size(), 3);
}

TEST(LeanPlan, NothingIsNothing) {
  EXPECT_TRUE(MakeLeanPlan({}, 4).pieces.empty());
  const std::vector<int64_t> none = {0, 0};
  ExpectCovers(MakeLeanPlans(none, 4, 4), none);
}

}  // namespace
}  // namespace cadre::ops
