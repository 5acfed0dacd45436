// Tests of the test: faults that the comparison of layouts must notice, and ranks that leave.
#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/layout_cases.h"

namespace cadre::testing_run {
namespace {

// A rank that ends early leaves the others with an error, and nothing else.
TEST(LayoutFailures, ALostRankIsAStatus) {
  Runs runs;
  for (const char* layout :
       {"tensor_parallel_size: 2", "expert_parallel_size: 2", "context_parallel_size: 2"}) {
    const std::vector<absl::Status> ended = runs.LoseRankOne({"moe", 2, layout});
    ASSERT_EQ(ended.size(), 1u);
    EXPECT_EQ(ended[0].code(), absl::StatusCode::kUnavailable) << Message(ended[0]);
    EXPECT_THAT(Message(ended[0]), testing::HasSubstr("rank 1 is lost in"));
  }
}

// Of sums, not of threads: runs cut short for ThreadSanitizer show nothing here.
class LayoutFaults : public testing::Test {
 protected:
  void SetUp() override {
    if (kSteps < 20) GTEST_SKIP() << "needs a whole run";
  }
};

// A test of the tests: each class of layout with a sum left out or scaled is noticed by the bound
// that they use.
TEST_F(LayoutFaults, AreNoticed) {
  constexpr Fault::Kind kDropped = Fault::Kind::kDroppedSum, kAverage = Fault::Kind::kAverage;
  constexpr Fault::Kind kShifted = Fault::Kind::kShiftedRows;
  const Case dp{"dense", 2, "zero_stage: 0"}, zero{"dense", 2, "zero_stage: 1"};
  const Case zero2{"dense", 2, "zero_stage: 2"}, zero3{"dense", 2, "zero_stage: 3"};
  const Case hybrid{"dense", 4, "zero_stage: 2, zero_group_size: 2"};
  const Case tp{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"};
  const Case norms{"norms", 2, "tensor_parallel_size: 2"};
  const Case ep{"moe", 4, "expert_parallel_size: 2, zero_stage: 1"};
  const Case cp{"dense", 2, "context_parallel_size: 2"};
  const Case latents{"bias", 2, "context_parallel_size: 2"};
  const Case copies{"moe", 2, "tensor_parallel_size: 2, sequence_parallel: false"};
  const Case split{"moe", 2,
                   "tensor_parallel_size: 2, expert_tensor_parallel_size: 1, "
                   "sequence_parallel: false"};
  const Case ladder{"dense/ladder", 2, "tensor_parallel_size: 2"};
  const Case etp{"oss", 4, "expert_parallel_size: 2, tensor_parallel_size: 2"};
  const Case pp{"tied", 2, "pipeline_parallel_size: 2"};
  const std::vector<std::pair<Case, Fault>> faults = {
      {dp, {kDropped, "dp_cp", "gradients"}},
      {dp, {kAverage, "dp_cp", "gradients"}},
      {zero, {kDropped, "dp_cp", "gradients"}},
      {zero2, {kDropped, "dp_cp", "gradients"}},
      {zero3, {kShifted, "dp_cp", "weights"}},
      {hybrid, {kDropped, "dp_cp_copy", "gradients"}},
      {tp, {kDropped, "stage", "gradients"}},  // of norms and routers, which are whole on each rank
      {tp, {kDropped, "tp", "attention"}},
      {tp, {kDropped, "etp", "experts"}},
      {tp, {kDropped, "tp_cp", "balance"}},
      {norms, {kDropped, "tp", "query and key norm"}},
      {norms, {kAverage, "tp", "embedding"}},
      {ep, {kDropped, "edp", "expert gradients"}},
      {ep, {kAverage, "edp", "expert gradients"}},
      {cp, {kDropped, "cp", "keys and values"}},
      {cp, {kAverage, "cp", "keys and values"}},
      {cp, {kDropped, "dp_cp", "gradients"}},
      {latents, {kDropped, "cp", "keys and values"}},
      {copies, {kDropped, "tp", "experts"}},
      {copies, {kDropped, "stage", "gradients"}},  // of norms over a rank's own heads
      {split, {kDropped, "edp", "expert gradients"}},
      {ladder, {kDropped, "tp", "attention"}},
      {ladder, {kDropped, "tp", "mlp"}},
      {ep, {kShifted, "ep", "experts"}},
      {etp, {kDropped, "etp", "experts"}},
      {etp, {kDropped, "etp_edp", "expert gradients"}},  // of the experts' biases
      {pp, {kDropped, "embedding", "gradients"}},
  };
  Runs runs;
  // What stands between changes nothing by itself.
  const LayoutRun right = runs.TrainWrongly(tp, {kDropped, "tp", "no such label"});
  EXPECT_LE(LargestGap(runs.Reference(tp.model, "f64"), right).relative, 1e-10);
  for (const auto& [c, fault] : faults) {
    const LayoutRun got = runs.TrainWrongly(c, fault);
    EXPECT_GT(LargestGap(runs.Reference(c.model, "f64"), got).relative, 1e-10)
        << c.model << " {" << c.parallel << "}: " << fault.group << " " << fault.label;
  }
}

TEST_F(LayoutFaults, WrongRoutingIsNoCloseChoice) {
  Runs runs;
  for (const char* model : {"moe", "bias", "oss"}) {
    const LayoutRun& right = runs.Reference(model, "f64");
    RoutingLog wrong = right.routing;
    auto& [place, choices] = *std::next(wrong.begin(), 7);
    ExpertChoice& choice = choices[11];
    // The last of those that were not chosen.
    int32_t other = static_cast<int32_t>(choice.scores.size()) - 1;
    while (std::ranges::count(choice.experts, other) > 0) --other;
    choice.experts.back() = other;
    std::ranges::sort(choice.experts);
    const RoutingSplit split = FirstSplit(right.spec, right.routing, wrong);
    EXPECT_EQ(std::pair(split.step, split.layer), place) << model;
    EXPECT_EQ(split.token, 11) << model;
    EXPECT_GT(split.gap, kCloseChoice) << model;
    EXPECT_EQ(FirstSplit(right.spec, right.routing, right.routing).step, -1);
  }
  // Routers that drift apart: their gradients are not summed.
  const Case tp{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"};
  const LayoutRun drifted =
      runs.TrainWrongly(tp, {Fault::Kind::kDroppedSum, "stage", "gradients"}, kSteps);
  const LayoutRun& right = runs.Reference(tp.model, "f64");
  EXPECT_GT(FirstSplit(right.spec, right.routing, drifted.routing).gap, kCloseChoice);
}

// What a capacity drops is a layout's own, but always the same.
TEST(LayoutCapacity, DropsTheSameEveryTime) {
  Runs runs;
  const Case ep{"moe-capped", 2, "expert_parallel_size: 2"};
  const LayoutRun one = runs.Train(ep.model, "f32", ep.world, ep.parallel);
  const LayoutRun two = runs.Train(ep.model, "f32", ep.world, ep.parallel);
  EXPECT_EQ(one.losses, two.losses);
  EXPECT_EQ(one.gradients, two.gradients);
  EXPECT_GT(LargestGap(runs.Reference("moe", "f32"), one).relative, 1e-3);
}

}  // namespace
}  // namespace cadre::testing_run
