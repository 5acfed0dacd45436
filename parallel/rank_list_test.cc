#include "parallel/rank_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cadre {
namespace {

using ::testing::HasSubstr;

TEST(RankList, ReadsWell) {
  EXPECT_EQ(RankList("rank", {3}), "rank 3");
  EXPECT_EQ(RankList("rank", {3, 5}), "ranks 3, 5");
  EXPECT_EQ(RankList("rank", {0, 1, 2, 3, 7, 9, 10}), "ranks 0-3, 7, 9, 10");
  std::vector<int> even;
  for (int i = 0; i < 2000; i += 2) even.push_back(i);
  EXPECT_THAT(RankList("node", even), HasSubstr(", 30 and 984 more"));
}

}  // namespace
}  // namespace cadre
