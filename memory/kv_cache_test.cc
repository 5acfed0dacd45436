#include "memory/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

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

class PrefixTest : public KvCacheTest {
 protected:
  void SetUp() override { std::iota(tokens_.begin(), tokens_.end(), 0); }

  // Stores the first n tokens, as a prompt that was computed.
  void Store(KvSequence& sequence, int64_t n, const PrefixRoot& root = {}) {
    cache_.Attach(sequence, root, First(n), n - 1);
    ASSERT_TRUE(cache_.Extend(sequence, n));
    cache_.Commit(sequence, First(n));
  }
  int64_t Found(int64_t n, const PrefixRoot& root = {}) {
    KvSequence sequence;
    const int64_t found = cache_.Attach(sequence, root, First(n), n - 1);
    cache_.Free(sequence);
    return found;
  }
};

TEST_F(PrefixTest, FullBlocksAreFoundAndCountAsFree) {
  KvSequence a;
  Store(a, 40);
  EXPECT_EQ(cache_.free_blocks(), 1);
  EXPECT_EQ(Found(40), 32);
  cache_.Free(a);
  EXPECT_EQ(cache_.free_blocks(), 4);
  EXPECT_EQ(cache_.usage(), 0);
  EXPECT_EQ(Found(40), 32);
  EXPECT_EQ(Found(32), 31) << "one token is left to be computed";
  EXPECT_EQ(Found(17), 16);
  EXPECT_EQ(Found(16), 15);
  EXPECT_EQ(Found(15), 0);
  tokens_[20] = 99;
  EXPECT_EQ(Found(40), 16);
  tokens_[0] = 99;
  EXPECT_EQ(Found(40), 0);
}

TEST_F(PrefixTest, TenantsAdaptersAndWeightsShareNothing) {
  KvSequence a;
  Store(a, 40, {.salt = "one"});
  EXPECT_EQ(Found(40, {.salt = "one"}), 32);
  EXPECT_EQ(Found(40, {.salt = "two"}), 0);
  EXPECT_EQ(Found(40), 0);
  EXPECT_EQ(Found(40, {.adapter = "one"}), 0);
  EXPECT_EQ(Found(40, {.adapter = "one", .salt = "one"}), 0);
  cache_.SetWeightVersion(2);
  EXPECT_EQ(Found(40, {.salt = "one"}), 0);
  // It goes on with new weights over keys of the old ones: that is nothing to share.
  ASSERT_TRUE(cache_.Extend(a, 48));
  cache_.Commit(a, First(48));
  EXPECT_EQ(Found(49, {.salt = "one"}), 0);
  cache_.SetWeightVersion(0);
  EXPECT_EQ(Found(49, {.salt = "one"}), 32);
  cache_.Free(a);
}

TEST_F(PrefixTest, TheLastBlockIsCopiedBeforeItIsWritten) {
  KvSequence a, b;
  Store(a, 32);
  EXPECT_EQ(cache_.Attach(b, {}, First(32), 31), 31);
  EXPECT_TRUE(std::ranges::equal(a.blocks(), b.blocks()));
  const int32_t shared = b.blocks()[1];
  EXPECT_EQ(cache_.BlocksNeeded(b, 31), 0);
  EXPECT_EQ(cache_.BlocksNeeded(b, 32), 1);
  ASSERT_TRUE(cache_.Extend(b, 32));
  EXPECT_NE(b.blocks()[1], shared);
  const std::vector<KvCopy> copies = cache_.TakeCopies();
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].from, shared);
  EXPECT_EQ(copies[0].to, b.blocks()[1]);
  // What it computed is what was cached, so the copy is free again.
  cache_.Commit(b, First(32));
  EXPECT_EQ(b.blocks()[1], shared);
  EXPECT_EQ(cache_.free_blocks(), 2);
  cache_.Free(a);
  cache_.Free(b);
}

// Nothing is free for a copy and nobody but the index holds the block: it is written in place.
TEST_F(PrefixTest, TheCacheGivesUpABlockThatItsOnlyUserNeeds) {
  KvSequence a;
  Store(a, 64);
  cache_.Free(a);
  EXPECT_EQ(cache_.Attach(a, {}, First(64), 63), 63);
  EXPECT_EQ(cache_.free_blocks(), 0);
  EXPECT_EQ(cache_.BlocksNeeded(a, 64), 0);
  ASSERT_TRUE(cache_.Extend(a, 64));
  EXPECT_TRUE(cache_.TakeCopies().empty());
  cache_.Commit(a, First(64));
  cache_.Free(a);
  EXPECT_EQ(Found(64), 63);
}

TEST_F(PrefixTest, ForksShareThePartOfABlockToo) {
  KvSequence a, b;
  Store(a, 20);
  EXPECT_EQ(cache_.Fork(b, a, 19), 19);
  EXPECT_EQ(cache_.free_blocks(), 2);
  ASSERT_TRUE(cache_.Extend(b, 20));
  EXPECT_EQ(cache_.TakeCopies().size(), 1u);
  ASSERT_TRUE(cache_.Extend(a, 21));
  EXPECT_TRUE(cache_.TakeCopies().empty()) << "it is alone with its last block now";
  EXPECT_NE(a.blocks()[1], b.blocks()[1]);
  EXPECT_EQ(a.blocks()[0], b.blocks()[0]);
  cache_.Free(a);
  cache_.Free(b);
  EXPECT_EQ(cache_.usage(), 0);
}

TEST_F(PrefixTest, WhatWasFreedFirstIsEvictedFirstLeavesBeforeTheirTrunk) {
  KvSequence a, b;
  Store(a, 48);
  cache_.Free(a);
  EXPECT_EQ(Found(17), 16);  // the trunk was used last
  ASSERT_TRUE(cache_.Extend(b, 32));
  EXPECT_EQ(Found(49), 32);
  ASSERT_TRUE(cache_.Extend(b, 48));
  EXPECT_EQ(Found(49), 16);
  cache_.Free(b);
}

TEST_F(PrefixTest, OffMeansThatNothingIsShared) {
  KvCache off(allocator_, {kLayout}, 4, {.prefix_caching = false});
  KvSequence a, b;
  EXPECT_EQ(off.Attach(a, {}, First(32), 31), 0);
  ASSERT_TRUE(off.Extend(a, 32));
  off.Commit(a, First(32));
  EXPECT_EQ(off.Attach(b, {}, First(32), 31), 0);
  EXPECT_EQ(off.Fork(b, a, 31), 0);
  off.Free(a);
  EXPECT_EQ(off.pool().free_blocks(), 4);
}

TEST_F(PrefixTest, GivesItsMemoryUpAndForgets) {
  KvSequence a;
  Store(a, 40);
  EXPECT_DEATH(cache_.DropBytes(), "3 blocks are in use");
  cache_.Free(a);
  const size_t bytes = allocator_.usage().live_bytes;
  EXPECT_GE(bytes, cache_.pool().bytes());
  cache_.DropBytes();
  EXPECT_EQ(allocator_.usage().live_bytes, 0u);
  cache_.AllocateBytes();
  EXPECT_EQ(allocator_.usage().live_bytes, bytes);
  EXPECT_EQ(Found(40), 0);
  Store(a, 40);
  cache_.Free(a);
  EXPECT_EQ(Found(40), 32);
}

}  // namespace
}  // namespace cadre
