#include "moe/capacity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre::moe {
namespace {

using testing::ElementsAre;

// Six tokens of two choices each over four experts: 3 a head.
CappedIds Capped(HostAllocator& allocator, double factor) {
  Context ctx{.allocator = &allocator};
  const std::vector<int32_t> ids = {0, 1, 0, 2, 0, 3, 0, 1, 0, 1, 1, 3};
  return DropOverCapacity(ctx, Tensor::Of<int32_t>(allocator, {6, 2}, ids), 4, factor);
}

TEST(Capacity, TheFirstTokensOfAnExpertStay) {
  HostAllocator allocator;
  const CappedIds capped = Capped(allocator, 1.0);
  EXPECT_THAT(capped.ids.span<int32_t>(), ElementsAre(0, 1, 0, 2, 0, 3, -1, 1, -1, 1, -1, 3));
  EXPECT_EQ(capped.dropped, 3);
}

TEST(Capacity, IsRoundedUp) {
  HostAllocator allocator;
  // ceil(0.4 * 3) = 2.
  const CappedIds capped = Capped(allocator, 0.4);
  EXPECT_THAT(capped.ids.span<int32_t>(), ElementsAre(0, 1, 0, 2, -1, 3, -1, 1, -1, -1, -1, 3));
  EXPECT_EQ(capped.dropped, 5);
  EXPECT_EQ(Capped(allocator, 1e-9).dropped, 8);  // one a head is left
}

TEST(Capacity, EnoughDropsNothing) {
  HostAllocator allocator;
  EXPECT_EQ(Capped(allocator, 5.0 / 3).dropped, 0);
  EXPECT_EQ(Capped(allocator, 1e300).dropped, 0);
}

TEST(Capacity, NoTokens) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  EXPECT_EQ(DropOverCapacity(ctx, ctx.Empty({0, 2}, DType::kI32), 4, 1.0).dropped, 0);
}

}  // namespace
}  // namespace cadre::moe
