#include "memory/kv_block_pool.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre {
namespace {

const ops::KvLayout kLayout{
    .dtype = DType::kF32, .kv_heads = 2, .key_dim = 8, .value_dim = 8, .block_size = 16};

TEST(KvBlockPool, GivesEveryBlockOnceAndTakesThemBack) {
  HostAllocator allocator;
  KvBlockPool pool(allocator, {kLayout, kLayout}, 3);
  std::vector<int32_t> blocks;
  while (auto block = pool.Allocate()) blocks.push_back(*block);
  EXPECT_EQ(blocks, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(pool.free_blocks(), 0);
  pool.Release(1);
  EXPECT_EQ(pool.Allocate(), 1);
}

TEST(KvBlockPool, SharedBlocksStayUntilTheLastReference) {
  HostAllocator allocator;
  KvBlockPool pool(allocator, {kLayout}, 1);
  const int32_t block = *pool.Allocate();
  pool.Share(block);
  pool.Release(block);
  EXPECT_EQ(pool.free_blocks(), 0);
  pool.Release(block);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_DEATH(pool.Release(block), "is free");
}

TEST(KvBlockPool, BytesCoverEveryLayer) {
  HostAllocator allocator;
  KvBlockPool pool(allocator, {kLayout, kLayout}, 4);
  EXPECT_EQ(KvBlockPool::BytesPerBlock(std::vector{kLayout, kLayout}),
            2 * ops::KvBlockBytes(kLayout));
  EXPECT_NE(pool.data(0), pool.data(1));
}

}  // namespace
}  // namespace cadre
