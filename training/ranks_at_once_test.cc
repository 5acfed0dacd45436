#include "training/ranks_at_once.h"

#include <gtest/gtest.h>

namespace cadre {
namespace {

TEST(RanksAtOnce, CoresBoundThem) {
  EXPECT_EQ(RanksAtOnce(1, 2, 2), 1);
  EXPECT_EQ(RanksAtOnce(2, 2, 1), 2);
  EXPECT_EQ(RanksAtOnce(4, 2, 1), 2);
  EXPECT_EQ(RanksAtOnce(40, 2, 1), 2);
  EXPECT_EQ(RanksAtOnce(2, 64, 8), 2);
  EXPECT_EQ(RanksAtOnce(3, 6, 4), 1.5);
  // More threads than cores: one rank's peak is the machine's.
  EXPECT_EQ(RanksAtOnce(4, 2, 8), 1);
  EXPECT_EQ(RanksAtOnce(4, 0, 1), 4);
}

TEST(RanksAtOnce, OneProcessIsOne) { EXPECT_EQ(*FindRanksAtOnce(nullptr, nullptr, 2), 1); }

}  // namespace
}  // namespace cadre
