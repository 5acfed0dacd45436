// Saved under one layout, gone on with under another: the losses of one process.
#include <gtest/gtest.h>

#include "tests/layout_cases.h"

namespace cadre::testing_run {
namespace {

constexpr size_t kHalf = kSteps / 2;

void GoOn(const std::vector<std::pair<Case, Case>>& pairs) {
  Runs runs;
  for (const auto& [first, second] : pairs) {
    SCOPED_TRACE(testing::PrintToString(first) + " -> " + testing::PrintToString(second));
    const LayoutRun& expected = runs.Reference(first, "f64");
    const std::vector<double> losses = runs.Continue(first, second, "f64").went_on;
    ASSERT_EQ(losses.size(), kHalf);
    for (size_t i = 0; i < kHalf; ++i) {
      EXPECT_NEAR(losses[i] / expected.losses[kHalf + i], 1.0, 1e-9) << i;
    }
  }
}

TEST(LayoutCheckpoints, ARunGoesOnUnderAnotherLayout) {
  GoOn({{{"dense", 8, "tensor_parallel_size: 2, zero_stage: 3"}, {"dense", 1}},
        {{"bias", 2, "zero_stage: 0"}, {"bias", 4, "zero_stage: 1"}},
        {{"oss", 2, "tensor_parallel_size: 2"},
         {"oss", 4,
          "expert_parallel_size: 4, tensor_parallel_size: 2, expert_tensor_parallel_size: 1"}},
        {{"tied", 2, "pipeline_parallel_size: 2"}, {"tied", 2, "zero_stage: 1"}}});
}

TEST(FullLayoutCheckpoints, ARunGoesOnUnderAnotherLayout) {
  GoOn({{{"dense", 2, "zero_stage: 3, zero_prefetch: 0"}, {"dense", 4, "zero_stage: 1"}},
        {{"dense", 1}, {"dense", 2, "zero_stage: 1"}},
        {{"dense", 4, "zero_stage: 1, zero_group_size: 2"}, {"dense", 2, "zero_stage: 3"}},
        {{"tied", 4, "tensor_parallel_size: 2"}, {"tied", 1}},
        {{"norms", 2, "zero_stage: 1"}, {"norms", 4, "tensor_parallel_size: 4"}},
        {{"moe", 4, "expert_parallel_size: 2, zero_stage: 1"},
         {"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"}},
        {{"tied", 2, "context_parallel_size: 2"}, {"tied", 2, "zero_stage: 0"}},
        {{"moe", 2, "expert_parallel_size: 2"},
         {"moe", 4,
          "pipeline_parallel_size: 2, pipeline_schedule: zb_h1, expert_parallel_size: 2"}}});
}

// What no element is rounded twice for: the masters of bf16 weights come back whole.
TEST(LayoutCheckpoints, ShardsOfMastersComeBackBitForBit) {
  Runs runs;
  const Case sharded{"dense", 2, "zero_stage: 3"};
  const Runs::Halves halves = runs.Continue(sharded, sharded, "bf16");
  EXPECT_EQ(halves.stayed.size(), kHalf);
  EXPECT_EQ(halves.went_on, halves.stayed);
}

}  // namespace
}  // namespace cadre::testing_run
