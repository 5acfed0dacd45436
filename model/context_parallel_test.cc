// Canonical attention: what a token becomes has the same bits however many ranks share its
// sequence.
#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "model/model.h"
#include "parallel/test_ranks.h"

namespace cadre {
namespace {

using testing::ElementsAre;

std::vector<int32_t> Values(const Tensor& x) {
  return {x.data<int32_t>(), x.data<int32_t>() + x.numel()};
}

TEST(ContextShare, HasItsTokensOfEverySequence) {
  HostAllocator memory;
  const std::vector<std::vector<int32_t>> sequences = {{10, 11, 12, 13, 14}, {20, 21, 22}};
  const Batch whole = PackSequences(memory, sequences);
  const Batch share = ShareOf(memory, whole, std::vector<int32_t>{0, 8}, 2, 1);
  EXPECT_THAT(Values(share.ids), ElementsAre(12, 13, 14, 20));
  EXPECT_THAT(Values(share.positions), ElementsAre(2, 3, 4, 0));
  EXPECT_THAT(share.offsets, ElementsAre(0, 3, 4));
  ASSERT_TRUE(share.context.has_value());
  EXPECT_THAT(share.context->offsets, ElementsAre(0, 5, 8));
  EXPECT_THAT(share.context->tokens, ElementsAre(2, 3, 4, 5));
  // Rank 0's tokens 0, 1, 6, 7 come first.
  EXPECT_THAT(Values(share.context->order.token_of), ElementsAre(0, 1, 4, 5, 6, 7, 2, 3));
  EXPECT_THAT(Values(share.context->order.row_of), ElementsAre(0, 1, 6, 7, 2, 3, 4, 5));
}

struct Loaded {
  Context ctx;
  std::unique_ptr<Model> model;

  Loaded(HostAllocator& memory, const std::string& name, DType dtype) {
    ctx = {.allocator = &memory, .threads = 1};
    auto loaded = LoadModel(ctx, "tests/golden/fixtures/" + name,
                            {.dtype = dtype, .decoder = {.max_position = 128}});
    CADRE_CHECK(loaded.ok(), "{}", Message(loaded.status()));
    model = *std::move(loaded);
    ctx.parameters = &model->parameters();
  }
  Tensor Hidden(const Batch& batch) { return model->decoder().Forward(ctx, batch).hidden.value; }
};

// Two rows of 96 tokens: one of two documents, one of one.
Batch TwoRows(HostAllocator& memory) {
  std::vector<std::vector<int32_t>> sequences(3);
  for (int i = 0; i < 75; ++i) sequences[0].push_back(3 + i * 7 % 70);
  for (int i = 0; i < 21; ++i) sequences[1].push_back(3 + i * 11 % 70);
  for (int i = 0; i < 96; ++i) sequences[2].push_back(3 + i * 13 % 70);
  return PackSequences(memory, sequences);
}

class ContextBits : public testing::TestWithParam<const char*> {
 protected:
  void Check(DType dtype, int ranks) {
    HostAllocator memory;
    Loaded one(memory, GetParam(), dtype);
    const Batch whole = TwoRows(memory);
    const Tensor want = one.Hidden(whole);
    RunRanks(ranks, [&](World& world) {
      std::vector<int> all;
      for (int r = 0; r < ranks; ++r) all.push_back(r);
      const auto cp = world.NewGroup("cp", all);
      ParallelGroups groups{.cp = cp.get(), .sequence = cp.get()};
      Loaded mine(memory, GetParam(), dtype);
      mine.ctx.groups = &groups;
      const Batch share =
          ShareOf(memory, whole, std::vector<int32_t>{0, 96, 192}, ranks, world.rank());
      const Tensor got = mine.Hidden(share);
      ASSERT_TRUE(groups.failure.ok()) << Message(groups.failure);
      const std::vector<int32_t>& tokens = share.context->tokens;
      ASSERT_EQ(got.dim(0), static_cast<int64_t>(tokens.size()));
      for (int64_t i = 0; i < got.dim(0); ++i) {
        const Tensor row = want.Narrow(tokens[static_cast<size_t>(i)], 1);
        ASSERT_EQ(std::memcmp(got.Narrow(i, 1).raw(), row.raw(), row.bytes()), 0)
            << "token " << tokens[static_cast<size_t>(i)] << " of rank " << world.rank();
      }
    });
  }
};

TEST_P(ContextBits, F32) { Check(DType::kF32, 2); }
TEST_P(ContextBits, BF16) { Check(DType::kBF16, 2); }
TEST_P(ContextBits, BF16OnThree) { Check(DType::kBF16, 3); }

// Grouped queries, norms of all heads, latents, a window with sinks.
INSTANTIATE_TEST_SUITE_P(Families, ContextBits,
                         testing::Values("llama", "olmoe", "deepseek_v3", "gpt_oss"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace cadre
