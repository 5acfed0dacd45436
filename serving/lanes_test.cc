#include "serving/lanes.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre {
namespace {

constexpr int64_t kBlocks = 4;

class LanesTest : public testing::Test {
 protected:
  LanesTest()
      : lanes_(allocator_,
               {.layouts = {{.dtype = DType::kBF16,
                             .kv_heads = 1,
                             .key_dim = 8,
                             .value_dim = 8,
                             .block_size = 16}},
                .blocks = kBlocks},
               {.lanes = 3, .scheduler = {.max_context = 64, .growth_reserve = 0}}) {}

  void Add(uint64_t id, std::shared_ptr<const std::vector<int32_t>> prompt) {
    auto sequence = std::make_unique<Sequence>();
    sequence->tokens = *prompt;
    sequence->request = {.id = id, .prompt = std::move(prompt)};
    lanes_.Add(std::move(sequence));
  }
  void Add(uint64_t id, size_t tokens) {
    Add(id, std::make_shared<std::vector<int32_t>>(tokens, static_cast<int32_t>(id)));
  }

  HostAllocator allocator_;
  Lanes lanes_;
};

TEST_F(LanesTest, ASequenceGoesWhereTheFewestAreAndStays) {
  for (uint64_t id = 0; id < 6; ++id) Add(id, 5 + id);
  const std::vector<ScheduledChunk> chunks = lanes_.Plan(0);
  ASSERT_EQ(chunks.size(), 6u);
  std::vector<uint64_t> ids;
  for (const ScheduledChunk& chunk : chunks) ids.push_back(chunk.sequence->request.id);
  EXPECT_EQ(ids, (std::vector<uint64_t>{0, 3, 1, 4, 2, 5})) << "lane after lane";
  const std::vector<StepPlan> plans = lanes_.BuildPlans(chunks);
  ASSERT_EQ(plans.size(), 3u);
  EXPECT_EQ(plans[0].tokens(), 5 + 8);
  EXPECT_EQ(plans[1].tokens(), 6 + 9);
  EXPECT_EQ(plans[2].offsets, (std::vector<int32_t>{0, 7, 17}));
  // Each lane has all block ids for itself.
  for (const StepPlan& plan : plans) EXPECT_EQ(plan.tables[0].slots[0], 0);
  EXPECT_EQ(lanes_.running(), 6);
  EXPECT_EQ(lanes_.Remove(4)->lane, 1);
  EXPECT_EQ(lanes_.Remove(4), nullptr);
  Add(6, 5);
  EXPECT_EQ(lanes_.Remove(6)->lane, 1);
  EXPECT_EQ(lanes_.Ids(), (std::vector<uint64_t>{0, 3, 1, 2, 5}));
  EXPECT_DOUBLE_EQ(lanes_.kv_usage(), 5.0 / (3 * kBlocks));
}

TEST_F(LanesTest, ChoicesThatShareAPromptAreInOneLane) {
  Add(0, 3);
  const auto prompt = std::make_shared<std::vector<int32_t>>(20, 7);
  for (uint64_t id = 1; id < 4; ++id) Add(id, prompt);
  Add(4, 3);
  for (uint64_t id = 1; id < 4; ++id) EXPECT_EQ(lanes_.Remove(id)->lane, 1);
  EXPECT_EQ(lanes_.Remove(4)->lane, 2);
}

TEST_F(LanesTest, ALaneWithNothingToDoHasAPlanOfNoTokens) {
  Add(0, 3);
  Add(1, 4);
  lanes_.Remove(0);
  const std::vector<StepPlan> plans = lanes_.BuildPlans(lanes_.Plan(0));
  EXPECT_EQ(plans[0].tokens(), 0);
  EXPECT_EQ(plans[0].offsets, std::vector<int32_t>{0});
  EXPECT_EQ(plans[1].tokens(), 4);
}

// Rank 0 has the bytes of its own lane alone.
TEST_F(LanesTest, OtherLanesHaveNoBytes) {
  EXPECT_LT(allocator_.usage().live_bytes, 2 * lanes_.own_cache().pool().bytes());
}

}  // namespace
}  // namespace cadre
