#include "core/ops/kv_copy.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/host_allocator.h"
#include "core/ops/attention_test_util.h"
#include "core/random.h"

namespace cadre::ops {
namespace {

constexpr int kSlots = 48;

// Two blocks of one head, the first one's slots written.
struct Blocks {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  KvLayout layout;
  std::vector<std::byte> bytes;

  explicit Blocks(const KvLayout& of) : layout(of), bytes(2 * KvBlockBytes(of), std::byte{0}) {
    const RandomKey key(4, "kv_copy_test");
    const auto normal = [&](int64_t dim, uint64_t stream) {
      Tensor x = ctx.Empty({kSlots, 1, dim}, layout.dtype);
      VisitFloat(layout.dtype, [&](auto t) {
        for (int64_t i = 0; i < x.numel(); ++i) {
          x.data<decltype(t)>()[i] =
              static_cast<decltype(t)>(static_cast<float>(key.Normal(i, stream)));
        }
      });
      return x;
    };
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < kSlots; ++i) slots.push_back(i);
    WriteKv(ctx,
            {normal(layout.key_dim, 1), normal(layout.value_dim, 2), slots, bytes.data(), layout});
  }

  std::byte* head(int block) { return bytes.data() + block * layout.head_bytes(); }
  std::vector<double> Slot(int block, int64_t slot) {
    std::vector<double> all;
    for (int64_t d = 0; d < layout.key_dim; ++d) {
      all.push_back(KvKey(layout, head(block), slot, d));
    }
    for (int64_t d = 0; d < layout.value_dim; ++d) {
      all.push_back(KvValue(layout, head(block), slot, d));
    }
    return all;
  }
};

TEST(CopyKvSlot, MovesOneSlotAndNoOther) {
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    for (KvQuantization kind :
         {KvQuantization::kNone, KvQuantization::kInt8, KvQuantization::kInt4}) {
      Blocks blocks({dtype, 1, 80, 48, kSlots, kind});
      for (const auto& [from, to] :
           {std::pair{0, 47}, {47, 0}, {17, 18}, {5, 21}, {30, 30}, {33, 4}}) {
        std::vector<std::vector<double>> want;
        for (int64_t slot = 0; slot < kSlots; ++slot) want.push_back(blocks.Slot(1, slot));
        want[to] = blocks.Slot(0, from);
        CopyKvSlot(blocks.layout, blocks.head(0), from, blocks.head(1), to);
        for (int64_t slot = 0; slot < kSlots; ++slot) {
          ASSERT_EQ(blocks.Slot(1, slot), want[slot]) << from << " to " << to << ", slot " << slot;
        }
      }
      const std::vector<double> kept = blocks.Slot(0, 9);
      CopyKvSlot(blocks.layout, blocks.head(0), 9, blocks.head(0), 2);
      EXPECT_EQ(blocks.Slot(0, 2), kept);
    }
  }
}

TEST(ReadKvTest, GivesBackWhatWasWritten) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 2};
  for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64}) {
    const KvLayout layout{dtype, 2, 80, 48, 16};
    std::vector<std::byte> bytes(3 * KvBlockBytes(layout));
    const Tensor k = testing_attention::Normal(ctx, {40, 2, 80}, dtype, 1);
    const Tensor v = testing_attention::Normal(ctx, {40, 2, 48}, dtype, 2);
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < 40; ++i) slots.push_back((i * 7 + 3) % 48);
    WriteKv(ctx, {k, v, slots, bytes.data(), layout});
    const KeptTokens kept = ReadKv(ctx, {slots, bytes.data(), layout});
    EXPECT_EQ(std::memcmp(kept.k.raw(), k.raw(), k.bytes()), 0);
    EXPECT_EQ(std::memcmp(kept.v.raw(), v.raw(), v.bytes()), 0);
  }
}

}  // namespace
}  // namespace cadre::ops
