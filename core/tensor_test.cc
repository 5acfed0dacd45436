#include "core/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "core/host_allocator.h"
#include "core/random.h"

namespace cadre {
namespace {

TEST(DType, SixteenBitRoundTripsAreExact) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    F16 half;
    half.bits = static_cast<uint16_t>(bits);
    float value = static_cast<float>(half);
    if (!std::isnan(value)) {
      EXPECT_EQ(F16(value).bits, half.bits);
    }
    BF16 brain;
    brain.bits = static_cast<uint16_t>(bits);
    if (!std::isnan(static_cast<float>(brain))) {
      EXPECT_EQ(BF16(static_cast<float>(brain)).bits, brain.bits);
    }
  }
}

TEST(DType, RoundsToNearestEven) {
  EXPECT_EQ(static_cast<float>(BF16(1.0f + 1.0f / 256)), 1.0f);
  EXPECT_EQ(static_cast<float>(BF16(1.0f + 3.0f / 256)), 1.0f + 4.0f / 256);
  EXPECT_EQ(static_cast<float>(F16(1.0f + 1.0f / 2048)), 1.0f);
  EXPECT_EQ(static_cast<float>(F16(1.0f + 3.0f / 2048)), 1.0f + 4.0f / 2048);
  EXPECT_TRUE(std::isinf(static_cast<float>(F16(65520.0f))));
  EXPECT_EQ(static_cast<float>(F16(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isnan(static_cast<float>(BF16(NAN))));
  EXPECT_TRUE(std::isnan(static_cast<float>(F16(NAN))));
}

TEST(Tensor, ViewsShareStorage) {
  HostAllocator allocator;
  std::vector<float> values = {0, 1, 2, 3, 4, 5};
  Tensor a = Tensor::Of<float>(allocator, {3, 2}, values);
  Tensor b = a.Narrow(1, 2).Reshape({4});
  EXPECT_EQ(b.data<float>()[0], 2);
  b.data<float>()[3] = 9;
  EXPECT_EQ(a.data<float>()[5], 9);
  EXPECT_DEATH(a.Narrow(2, 2), "rows");
  EXPECT_DEATH(a.Reshape({5}), "as");
}

TEST(HostAllocator, ReusesBlocksAndCounts) {
  HostAllocator allocator;
  std::byte* first = nullptr;
  {
    auto storage = allocator.Allocate(1000);
    first = storage->data();
    EXPECT_EQ(allocator.usage().live_bytes, 1024u);
  }
  EXPECT_EQ(allocator.usage().live_bytes, 0u);
  auto again = allocator.Allocate(1020);
  EXPECT_EQ(again->data(), first);
  EXPECT_EQ(allocator.usage().peak_bytes, 1024u);
  EXPECT_EQ(allocator.usage().reserved_bytes, 1024u);
}

TEST(HostAllocator, IdleBlocksPayForNewOnes) {
  constexpr size_t kMiB = size_t{1} << 20;
  HostAllocator allocator;
  auto kept = allocator.Allocate(32 * kMiB);
  for (size_t i = 0; i < 64; ++i) {
    // Sizes that no two passes share, as batches of other lengths have.
    auto block = allocator.Allocate((64 + 8 * (i % 8)) * kMiB);
    const HostAllocator::Usage usage = allocator.usage();
    EXPECT_LE(usage.reserved_bytes, usage.peak_bytes + usage.peak_bytes / 16);
  }
  EXPECT_EQ(allocator.usage().peak_bytes, 152 * kMiB);
  allocator.Trim();
  EXPECT_EQ(allocator.usage().reserved_bytes, 32 * kMiB);
}

TEST(HostAllocator, TheBlockLongestUnusedGoesFirst) {
  constexpr size_t kMiB = size_t{1} << 20;
  HostAllocator allocator;
  auto kept = allocator.Allocate(64 * kMiB);
  for (const size_t mib : {3, 4, 3, 4}) (void)allocator.Allocate(mib * kMiB);
  EXPECT_EQ(allocator.usage().reserved_bytes, 71 * kMiB);
  (void)allocator.Allocate(8 * kMiB);  // at most 4.5 may be idle beside it
  EXPECT_EQ(allocator.usage().reserved_bytes, 76 * kMiB);
  auto four = allocator.Allocate(4 * kMiB);
  EXPECT_EQ(allocator.usage().reserved_bytes, 76 * kMiB);
}

// Known answers of Random123's kat_vectors for philox4x32-10.
TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(Philox({0, 0, 0, 0}, 0), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, ~uint64_t{0}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, NormalHasItsMoments) {
  RandomKey key(1, "test");
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    double x = key.Normal(i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.02);
  EXPECT_NEAR(squares / kDraws, 1, 0.02);
}

}  // namespace
}  // namespace cadre
