#include "serving/prompt_shares.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <numeric>

namespace cadre {
namespace {

using Shares = std::vector<int64_t>;

TEST(PromptShares, TheFirstHasHalfAndTheOthersShareTheRest) {
  EXPECT_EQ(SharePrompts(Shares{1000, 1000, 1000}, 100), (Shares{50, 25, 25}));
  EXPECT_EQ(SharePrompts(Shares{1000}, 100), (Shares{100}));
}

TEST(PromptShares, WhatOneDoesNotNeedGoesToTheOthers) {
  EXPECT_EQ(SharePrompts(Shares{10, 1000, 1000}, 100), (Shares{10, 45, 45}));
  EXPECT_EQ(SharePrompts(Shares{1000, 5, 1000}, 100), (Shares{50, 5, 45}));
  EXPECT_EQ(SharePrompts(Shares{1000, 5, 5}, 100), (Shares{90, 5, 5}));
  EXPECT_EQ(SharePrompts(Shares{3, 4}, 100), (Shares{3, 4}));
  EXPECT_TRUE(SharePrompts({}, 100).empty());
}

TEST(PromptShares, HandOutTheRoomAndLeaveNobodyOut) {
  const bool holds = rc::check([] {
    const auto wants = *rc::gen::nonEmpty(rc::gen::container<Shares>(rc::gen::inRange(1, 500)));
    const auto count = static_cast<int64_t>(wants.size());
    const int64_t room = *rc::gen::inRange<int64_t>(count, count + 2000);
    const Shares shares = SharePrompts(wants, room);
    const int64_t all = std::accumulate(wants.begin(), wants.end(), int64_t{0});
    RC_ASSERT(std::accumulate(shares.begin(), shares.end(), int64_t{0}) == std::min(all, room));
    for (size_t i = 0; i < wants.size(); ++i) {
      RC_ASSERT(shares[i] >= 1);
      RC_ASSERT(shares[i] <= wants[i]);
    }
  });
  EXPECT_TRUE(holds);
}

}  // namespace
}  // namespace cadre
