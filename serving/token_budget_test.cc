#include "serving/token_budget.h"

#include <gtest/gtest.h>

#include <vector>

namespace cadre {
namespace {

TEST(TokenBudget, TheRidgeIsWhereTheTimeIsHalfAsLongAgain) {
  // Flat up to 32 rows, then a millisecond for each 8.
  const std::vector<RowTime> times = {
      {1, 0.004}, {16, 0.004}, {32, 0.004}, {64, 0.008}, {128, 0.016}};
  EXPECT_EQ(RidgeOf(times), 48);
  EXPECT_EQ(RidgeOf(std::vector<RowTime>{{1, 0.004}, {32, 0.005}, {64, 0.009}}), 40);
}

TEST(TokenBudget, TheRidgeIsTheMostThatWasMeasuredWhereTheTimeGrowsLess) {
  EXPECT_EQ(RidgeOf(std::vector<RowTime>{{1, 1.0}, {16, 1.1}, {32, 1.2}}), 32);
  EXPECT_EQ(RidgeOf(std::vector<RowTime>{{1, 1.0}}), 1);
  EXPECT_EQ(RidgeOf(std::vector<RowTime>{{1, 1.0}, {16, 1.0}, {32, 0.9}, {64, 5.7}}), 32 + 4);
}

TEST(TokenBudget, PeaksAreTheBestRatesThatWereMeasured) {
  // 1,000 elements of 2 bytes.
  const std::vector<RowTime> times = {{1, 0.5}, {16, 0.5}, {32, 0.8}};
  const MachinePeaks peaks = PeaksOf(times, 1000, 2000);
  EXPECT_DOUBLE_EQ(peaks.bytes_per_second, 4000);
  EXPECT_DOUBLE_EQ(peaks.flops_per_second, 2 * 1000 * 32 / 0.8);
}

}  // namespace
}  // namespace cadre
