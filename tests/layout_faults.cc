// Tests of the test: faults that the comparison of layouts must notice, and ranks that leave.
#include <algorithm>
#include <cmath>

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

using FaultyLayouts = std::vector<std::pair<Case, Fault>>;

// Of sums, not of threads: runs cut short for ThreadSanitizer show nothing here.
class LayoutFaults : public testing::Test {
 protected:
  void SetUp() override {
    if (kSteps < 20) GTEST_SKIP() << "needs a whole run";
  }

  // Each is noticed by the bounds that the layouts are held to.
  void ExpectNoticed(const FaultyLayouts& faulty) {
    for (const auto& [c, fault] : faulty) {
      SCOPED_TRACE(testing::PrintToString(c) + ": " + fault.group + " " + fault.label + " " +
                   fault.other);
      const LayoutRun got = runs_.TrainWrongly(c, fault);
      const Gap gap = LargestGap(Right(c.model), got);
      const double loss_gap = LargestLossGap(Right(c.model), got);
      EXPECT_FALSE(gap.relative <= 1e-10 && loss_gap <= 1e-9)
          << "largest gap " << gap.relative << " of " << gap.parameter << ", of a loss "
          << loss_gap;
    }
  }

  // As many steps of one process.
  const LayoutRun& Right(const std::string& model) {
    auto& run = right_[model];
    if (run.losses.empty()) run = runs_.TrainWrongly({model, 1}, {});
    return run;
  }

  Runs runs_;
  std::map<std::string, LayoutRun> right_;
};

constexpr Fault::Kind kDropped = Fault::Kind::kDroppedSum, kAverage = Fault::Kind::kAverage;
constexpr Fault::Kind kUnscaled = Fault::Kind::kUnscaled, kShifted = Fault::Kind::kShiftedRows;
constexpr Fault::Kind kWrong = Fault::Kind::kWrongGroup, kZeros = Fault::Kind::kZeros;
constexpr Fault::Kind kSwapped = Fault::Kind::kSwapped, kTurned = Fault::Kind::kTurnedAround;

// What stands between changes nothing by itself.
TEST_F(LayoutFaults, AGroupWithoutAFaultIsRight) {
  const Case tp{"moe", 2, "tensor_parallel_size: 2, zero_stage: 0"};
  const LayoutRun got = runs_.TrainWrongly(tp, {kDropped, "tp", "no such label"});
  EXPECT_LE(LargestGap(Right(tp.model), got).relative, 1e-10);
  EXPECT_LE(LargestLossGap(Right(tp.model), got), 1e-9);
}

TEST_F(LayoutFaults, WhatIsNoNumberIsNoticed) {
  const LayoutRun right{.losses = {1, 2}, .gradients = {{"a", {1}}, {"b", {2}}}};
  LayoutRun wrong = right;
  wrong.gradients["a"] = {std::nan("")};
  EXPECT_FALSE(LargestGap(right, wrong).relative <= 1e-10);
  EXPECT_EQ(LargestGap(right, wrong).parameter, "a");
  wrong.losses[0] = std::nan("");
  EXPECT_FALSE(LargestLossGap(right, wrong) <= 1e-9);
}

// A sum left out, or divided where it should not be, or not where it should.
TEST_F(LayoutFaults, OfSumsAreNoticed) {
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
  ExpectNoticed({
      {dp, {kDropped, "dp_cp", "gradients"}},
      {dp, {kAverage, "dp_cp", "gradients"}},
      {dp, {kUnscaled, "dp_cp", "gradients"}},
      {dp, {kDropped, "dp", "batch"}},  // the count that the loss is divided by
      {dp, {kDropped, "dp_cp", "loss"}},
      {zero, {kDropped, "dp_cp", "gradients"}},
      {zero, {kUnscaled, "dp_cp", "gradients"}},
      {zero2, {kDropped, "dp_cp", "gradients"}},
      {zero3, {kShifted, "dp_cp", "weights"}},
      {zero3, {kUnscaled, "dp_cp", "gradients"}},
      {hybrid, {kDropped, "dp_cp_copy", "gradients"}},
      {hybrid, {kUnscaled, "dp_cp_shard", "gradients"}},
      {tp, {kDropped, "stage", "gradients"}},  // of norms and routers, which are whole on each rank
      {tp, {kDropped, "tp", "attention"}},
      {tp, {kUnscaled, "tp", "attention"}},
      {tp, {kDropped, "etp", "experts"}},
      {tp, {kDropped, "tp_cp", "balance"}},
      {norms, {kDropped, "tp", "query and key norm"}},
      {norms, {kAverage, "tp", "embedding"}},
      {ep, {kDropped, "edp", "expert gradients"}},
      {ep, {kAverage, "edp", "expert gradients"}},
      {ep, {kUnscaled, "edp", "expert gradients"}},
      {cp, {kDropped, "cp", "keys and values"}},
      {cp, {kAverage, "cp", "keys and values"}},
      {cp, {kUnscaled, "cp", "keys and values"}},
      {cp, {kDropped, "dp_cp", "gradients"}},
      {latents, {kDropped, "cp", "keys and values"}},
      {latents, {kDropped, "stage", "expert counts"}},
      {copies, {kDropped, "tp", "experts"}},
      {copies, {kDropped, "stage", "gradients"}},  // of norms over a rank's own heads
      {split, {kDropped, "edp", "expert gradients"}},
      {ladder, {kDropped, "tp", "attention"}},
      {ladder, {kDropped, "tp", "mlp"}},
      {ladder, {kUnscaled, "tp", "mlp"}},
      {ep, {kShifted, "ep", "experts"}},
      {etp, {kDropped, "etp", "experts"}},
      {etp, {kDropped, "etp_edp", "expert gradients"}},  // of the experts' biases
      {etp, {kUnscaled, "etp_edp", "expert gradients"}},
      {pp, {kDropped, "embedding", "gradients"}},
      {pp, {kUnscaled, "embedding", "gradients"}},
  });
}

// Operations run over other ranks, with valid shapes.
TEST_F(LayoutFaults, OfGroupsAreNoticed) {
  const Case dp{"dense", 4, "tensor_parallel_size: 2, zero_stage: 0"};
  const Case zero3{"dense", 4, "tensor_parallel_size: 2, zero_stage: 3"};
  const Case tp{"moe", 4, "tensor_parallel_size: 2, zero_stage: 0"};
  const Case ladder{"dense/ladder", 4, "tensor_parallel_size: 2"};
  const Case ep{"moe", 4, "expert_parallel_size: 2, zero_stage: 0"};
  const Case etp{"oss", 4, "expert_parallel_size: 2, tensor_parallel_size: 2"};
  const Case cp{"dense", 4, "context_parallel_size: 2, zero_stage: 0"};
  const Case ring{"dense", 4, "context_parallel_size: 2, context_parallel_method: ring"};
  const Case pp{"tied", 4, "pipeline_parallel_size: 2, zero_stage: 0"};
  ExpectNoticed({
      {dp, {kWrong, "dp_cp", "gradients", "tp"}},
      {zero3, {kWrong, "dp_cp", "gradients"}},
      {zero3, {kWrong, "dp_cp", "weights"}},
      {tp, {kWrong, "tp", "attention"}},
      {tp, {kWrong, "stage", "gradients", "tp"}},
      {ladder, {kWrong, "tp", "mlp"}},
      {ep, {kWrong, "ep", "", "edp"}},
      {ep, {kWrong, "edp", "expert gradients"}},
      {etp, {kWrong, "etp_edp", "expert gradients"}},
      {cp, {kWrong, "cp", "keys and values"}},
      {ring, {kWrong, "cp", "ring attention"}},
      {pp, {kWrong, "pp", "activation"}},
      {pp, {kWrong, "embedding", "gradients", "dp_cp"}},
  });
}

using FullLayoutFaults = LayoutFaults;

TEST_F(FullLayoutFaults, OfGroupsAreNoticed) {
  const Case dp{"dense", 4, "tensor_parallel_size: 2, zero_stage: 0"};
  const Case zero{"dense", 4, "tensor_parallel_size: 2, zero_stage: 1"};
  const Case zero2{"dense", 4, "tensor_parallel_size: 2, zero_stage: 2"};
  const Case hybrid{"dense", 8, "tensor_parallel_size: 2, zero_stage: 2, zero_group_size: 2"};
  const Case tp{"moe", 4, "tensor_parallel_size: 2, zero_stage: 0"};
  const Case tp_cp{"moe", 4, "tensor_parallel_size: 2, context_parallel_size: 2"};
  const Case norms{"norms", 4, "tensor_parallel_size: 2"};
  const Case copies{"moe", 4, "tensor_parallel_size: 2, sequence_parallel: false"};
  const Case ladder{"dense/ladder", 4, "tensor_parallel_size: 2"};
  const Case ep{"moe", 4, "expert_parallel_size: 2, zero_stage: 0"};
  const Case ep_zero{"moe", 4, "expert_parallel_size: 2, zero_stage: 1"};
  const Case etp{"oss", 4, "expert_parallel_size: 2, tensor_parallel_size: 2"};
  const Case cp{"dense", 4, "context_parallel_size: 2, zero_stage: 0"};
  const Case latents{"bias", 4, "context_parallel_size: 2"};
  const Case pp{"tied", 4, "pipeline_parallel_size: 2, zero_stage: 0"};
  const Case pp_tp{"tied", 4, "pipeline_parallel_size: 2, tensor_parallel_size: 2"};
  ExpectNoticed({
      {dp, {kWrong, "dp_cp", "gradients"}},
      {zero, {kWrong, "dp_cp", "gradients"}},
      {zero2, {kWrong, "dp_cp", "gradients"}},
      {hybrid, {kWrong, "dp_cp_copy", "gradients", "tp"}},
      {tp, {kWrong, "etp", "experts", "edp"}},
      {tp, {kWrong, "tp", "head"}},
      {tp, {kWrong, "edp", "expert gradients", "tp"}},
      {tp_cp, {kWrong, "tp_cp", "balance", "tp"}},
      {norms, {kWrong, "tp", "query and key norm"}},
      {norms, {kWrong, "tp", "embedding"}},
      {copies, {kWrong, "tp", "experts"}},
      {ladder, {kWrong, "tp", "attention"}},
      {ep, {kWrong, "edp", "expert gradients", "ep"}},
      {ep_zero, {kWrong, "edp", "expert gradients"}},
      {etp, {kWrong, "etp", "experts"}},
      {cp, {kWrong, "dp_cp", "gradients", "cp"}},
      {latents, {kWrong, "cp", "keys and values"}},
      {pp, {kWrong, "pp", "activation gradient"}},
      {pp_tp, {kWrong, "embedding", "gradients"}},
  });
}

// Messages from one rank to another.
TEST_F(LayoutFaults, OfMessagesAreNoticed) {
  const Case ring{"dense", 2, "context_parallel_size: 2, context_parallel_method: ring"};
  const Case ring4{"norms", 4, "context_parallel_size: 4, context_parallel_method: ring"};
  const Case pp{"tied", 2, "pipeline_parallel_size: 2"};
  ExpectNoticed({
      {ring, {kZeros, "cp", "ring attention"}},
      {ring, {kSwapped, "cp", "ring attention"}},
      {ring4, {kTurned, "cp", "ring attention"}},
      {pp, {kZeros, "pp", "activation"}},
      {pp, {kSwapped, "pp", "activation"}},
      {pp, {kZeros, "pp", "activation gradient"}},
      {pp, {kSwapped, "pp", "activation gradient"}},
  });
}

TEST_F(FullLayoutFaults, OfMessagesAreNoticed) {
  const Case norms{"norms", 4, "context_parallel_size: 4, context_parallel_method: ring"};
  const Case latents{"bias", 4, "context_parallel_size: 4, context_parallel_method: ring"};
  FaultyLayouts faulty = {
      {norms, {kZeros, "cp", "ring attention"}},
      {norms, {kSwapped, "cp", "ring attention"}},
      {latents, {kZeros, "cp", "ring attention"}},
      {latents, {kTurned, "cp", "ring attention"}},
  };
  const Case pipelines[] = {
      {"dense", 2, "pipeline_parallel_size: 2, pipeline_schedule: gpipe"},
      {"rungs", 2, "pipeline_parallel_size: 2, pipeline_schedule: zb_h1"},
      {"dense", 2,
       "pipeline_parallel_size: 2, pipeline_schedule: zb_v, pipeline_split: [0, 1, 1, 0]"},
      {"moe", 2,
       "pipeline_parallel_size: 2, pipeline_schedule: interleaved_1f1b, "
       "pipeline_split: [0, 1, 1, 0]"},
      {"tied", 4, "pipeline_parallel_size: 4, pipeline_split: [0, 1, 1, 0]"}};
  for (const Case& c : pipelines) {
    for (const char* label : {"activation", "activation gradient"}) {
      faulty.push_back({c, {kZeros, "pp", label}});
      faulty.push_back({c, {kSwapped, "pp", label}});
    }
  }
  ExpectNoticed(faulty);
}

TEST_F(LayoutFaults, WrongRoutingIsNoCloseChoice) {
  for (const char* model : {"moe", "bias", "oss"}) {
    const LayoutRun& right = runs_.Reference({model}, "f64");
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
  const LayoutRun drifted = runs_.TrainWrongly(tp, {kDropped, "stage", "gradients"}, kSteps);
  const LayoutRun& right = runs_.Reference(tp, "f64");
  EXPECT_GT(FirstSplit(right.spec, right.routing, drifted.routing).gap, kCloseChoice);
}

// What a capacity drops is a layout's own, but always the same.
TEST(LayoutCapacity, DropsTheSameEveryTime) {
  Runs runs;
  const Case ep{"moe-capped", 2, "expert_parallel_size: 2"};
  const LayoutRun one = runs.Train(ep, "f32");
  const LayoutRun two = runs.Train(ep, "f32");
  EXPECT_EQ(one.losses, two.losses);
  EXPECT_EQ(one.gradients, two.gradients);
  EXPECT_GT(LargestGap(runs.Reference({"moe"}, "f32"), one).relative, 1e-3);
}

}  // namespace
}  // namespace cadre::testing_run
