#include "parallel/zigzag.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cadre {
namespace {

using testing::ElementsAre;

TEST(Zigzag, EachRankHasAnEarlyAndALateChunkOfEveryRow) {
  const std::vector<int32_t> rows = {0, 8, 12};
  EXPECT_THAT(ZigzagTokens(rows, 2, 0), ElementsAre(0, 1, 6, 7, 8, 11));
  EXPECT_THAT(ZigzagTokens(rows, 2, 1), ElementsAre(2, 3, 4, 5, 9, 10));
  EXPECT_THAT(ZigzagTokens(std::vector<int32_t>{0, 6}, 3, 2), ElementsAre(2, 3));
}

TEST(Zigzag, OneRankHasEverything) {
  EXPECT_THAT(ZigzagTokens(std::vector<int32_t>{0, 4}, 1, 0), ElementsAre(0, 1, 2, 3));
}

// What a rank's tokens attend to in a row of one document: nearly the same for all.
TEST(Zigzag, RanksCostAlike) {
  const std::vector<int32_t> rows = {0, 96};
  std::vector<int64_t> pairs;
  for (int rank = 0; rank < 4; ++rank) {
    int64_t sum = 0;
    for (const int32_t token : ZigzagTokens(rows, 4, rank)) sum += token + 1;
    pairs.push_back(sum);
  }
  EXPECT_THAT(pairs, testing::Each(pairs[0]));
}

TEST(ZigzagDeathTest, ARowThatDoesNotDivideIsABrokenInvariant) {
  EXPECT_DEATH(ZigzagTokens(std::vector<int32_t>{0, 6}, 2, 0), "a row of 6 tokens over 2 ranks");
}

}  // namespace
}  // namespace cadre
