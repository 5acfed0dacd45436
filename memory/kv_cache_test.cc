#include "memory/kv_cache.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre {
namespace {

const ops::KvLayout kLayout{
    .dtype = DType::kF32, .kv_heads = 1, .key_dim = 8, .value_dim = 8, .block_size = 16};

class KvCacheTest : public testing::Test {
 protected:
  HostAllocator allocator_;
  KvCache cache_{allocator_, {kLayout}, 4};
  std::vector<int32_t> tokens_ = std::vector<int32_t>(100, 1);

  std::span<const int32_t> First(int64_t n) {
    return std::span(tokens_).first(static_cast<size_t>(n));
  }
};

TEST_F(KvCacheTest, ExtendsOrLeavesUnchanged) {
  KvSequence a, b;
  EXPECT_TRUE(cache_.Extend(a, 17));
  EXPECT_EQ(a.blocks().size(), 2u);
  EXPECT_EQ(a.stored(), 0);
  EXPECT_EQ(cache_.BlocksNeeded(a, 32), 0);
  EXPECT_EQ(cache_.BlocksNeeded(a, 33), 1);
  EXPECT_FALSE(cache_.Extend(b, 33));
  EXPECT_EQ(b.blocks().size(), 0u);
  EXPECT_EQ(cache_.free_blocks(), 2);
  EXPECT_EQ(cache_.usage(), 0.5);
  EXPECT_TRUE(cache_.Extend(b, 32));
  EXPECT_FALSE(cache_.Extend(a, 33));
  cache_.Free(b);
  EXPECT_TRUE(cache_.Extend(a, 64));
  cache_.Free(a);
  EXPECT_EQ(cache_.usage(), 0);
  EXPECT_EQ(a.blocks().size(), 0u);
}

TEST_F(KvCacheTest, WhatIsNotCommittedIsOverwritten) {
  KvSequence a;
  ASSERT_TRUE(cache_.Extend(a, 20));
  cache_.Commit(a, First(15));
  EXPECT_EQ(a.stored(), 15);
  EXPECT_EQ(cache_.Slot(a, 15), a.blocks()[0] * 16 + 15);
  EXPECT_EQ(cache_.Slot(a, 16), a.blocks()[1] * 16);
  EXPECT_DEATH(cache_.Commit(a, First(33)), "room for 32");
  EXPECT_DEATH(cache_.Commit(a, First(14)), "14 tokens after 15");
  cache_.Free(a);
  EXPECT_EQ(a.stored(), 0);
}

}  // namespace
}  // namespace cadre
