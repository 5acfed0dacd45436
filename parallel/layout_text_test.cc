#include "parallel/layout_text.h"

#include <gtest/gtest.h>

namespace cadre {
namespace {

TEST(LayoutText, NamesTheAxesOfMoreThanOneRank) {
  EXPECT_EQ(LayoutText({}, true), "1 rank");
  Layout layout;
  layout.tp = layout.ep = 2;
  layout.dp = 4;
  layout.zero_stage = 3;
  EXPECT_EQ(LayoutText(layout, false), "8 ranks, tp 2, dp 4, zero_stage 3");
  EXPECT_EQ(LayoutText(layout, true), "8 ranks, tp 2, dp 4, ep 2, zero_stage 3");
}

}  // namespace
}  // namespace cadre
