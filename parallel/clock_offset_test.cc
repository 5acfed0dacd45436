#include "parallel/clock_offset.h"

#include <gtest/gtest.h>

#include "parallel/test_ranks.h"

namespace cadre {
namespace {

TEST(ClockOffset, TakesTheShortestRoundTrip) {
  const ClockOffset offset = OffsetOf({{.sent = 100, .answered = 5000, .back = 900},
                                       {.sent = 1000, .answered = 6020, .back = 1040},
                                       {.sent = 2000, .answered = 7000, .back = 2100}});
  EXPECT_EQ(offset.offset_ns, 5000);
  EXPECT_EQ(offset.bound_ns, 20);
}

// Ranks of one process share a clock, so what is measured must lie within what is promised.
TEST(ClockOffset, IsWithinItsBound) {
  RunRanks(3, [](World& world) {
    const std::unique_ptr<Communicator> group = world.NewGroup("clock", {0, 1, 2});
    const auto measured = MeasureClockOffset(*group, {world.rank()});
    ASSERT_TRUE(measured.ok()) << Message(measured.status());
    EXPECT_LE(std::abs(measured->offset_ns), measured->bound_ns);
    EXPECT_EQ(measured->bound_ns > 0, world.rank() > 0);
  });
}

TEST(ClockOffset, OfOneHostIsNone) {
  RunRanks(2, [](World& world) {
    const std::unique_ptr<Communicator> group = world.NewGroup("clock", {0, 1});
    const auto measured = MeasureClockOffset(*group, world.local_ranks());
    ASSERT_TRUE(measured.ok()) << Message(measured.status());
    EXPECT_EQ(measured->offset_ns, 0);
    EXPECT_EQ(measured->bound_ns, 0);
  });
}

}  // namespace
}  // namespace cadre
