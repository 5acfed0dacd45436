#include "parallel/pipeline_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/matmul.h"
#include "parallel/test_group.h"
#include "parallel/test_rig.h"
#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

constexpr int64_t kTokens = 3, kWidth = 4;
const Shape kActivation{kTokens, kWidth};

// A chain of square matrices, one a stage; the loss is the last activation times fixed numbers.
class Chain {
 public:
  Chain(RankRig& rig, int stages) : rig_(rig), stages_(stages) {
    for (int s = 0; s < stages; ++s) {
      weights_.push_back(rig.store.Add(
          {.name = fmt::format("stage {}", s), .shape = {kWidth, kWidth}, .layer = s}));
    }
    rig.store.Allocate(rig.memory, DType::kF64, {.gradients = true});
    for (int s = 0; s < stages; ++s) {
      const Tensor weight = rig.store.Acquire(weights_[static_cast<size_t>(s)], Lease::kForward);
      const Tensor numbers =
          Random(rig.memory, {kWidth, kWidth}, DType::kF64, 100 + static_cast<uint64_t>(s));
      std::ranges::copy(numbers.span<double>(), weight.data<double>());
    }
  }

  Var Forward(const StageInput& in) {
    Context& ctx = rig_.ctx;
    const auto m = static_cast<uint64_t>(in.microbatch);
    const Var x =
        in.stage > 0 ? in.activation : Var{Random(rig_.memory, kActivation, DType::kF64, m)};
    const Var y = ops::MatMul(ctx, x, {.weight = weights_[static_cast<size_t>(in.stage)]});
    if (in.stage + 1 == stages_) {
      outputs_[in.microbatch] = y.value;
      if (ctx.tape != nullptr) {
        ctx.tape->Seed(y.slot, Random(rig_.memory, kActivation, DType::kF64, 1000 + m));
      }
    }
    return y;
  }

  std::vector<double> Gradient(int stage) const {
    const auto values = rig_.store.Gradient(weights_[static_cast<size_t>(stage)]).span<double>();
    return {values.begin(), values.end()};
  }
  const std::map<int, Tensor>& outputs() const { return outputs_; }
  void Expect(int microbatches) {
    for (const ParamId id : weights_) rig_.store.ExpectReports(id, microbatches);
    rig_.store.ZeroGradients();
    outputs_.clear();
  }

 private:
  RankRig& rig_;
  const int stages_;
  std::vector<ParamId> weights_;
  std::map<int, Tensor> outputs_;
};

PipelineExecutor::Options OptionsOf(RankRig& rig) {
  return {.group = rig.size() > 1 ? rig.communicator.get() : nullptr,
          .shapes = std::vector<Shape>(16, kActivation),
          .dtype = DType::kF64,
          .accumulate = &ops::Accumulate};
}

// All stages of a microbatch on one tape, one microbatch after the other.
void RunPlainly(RankRig& rig, Chain& chain, int stages, int microbatches) {
  for (int m = 0; m < microbatches; ++m) {
    Tape tape(&ops::Accumulate);
    rig.ctx.tape = &tape;
    Var x;
    for (int s = 0; s < stages; ++s) x = chain.Forward({s, m, x});
    tape.Backward(rig.ctx);
    rig.ctx.tape = nullptr;
  }
}

ScheduleSpec SpecOf(config::PipelineSchedule kind, int ranks) {
  // Both are taken by every generator.
  return {.kind = kind,
          .ranks = ranks,
          .stages_per_rank = LeastStagesPerRank(kind),
          .microbatches = 2 * ranks};
}

TEST(PipelineExecutor, EveryScheduleGivesTheBitsOfOneProcess) {
  for (const config::PipelineSchedule kind : AllSchedules()) {
    for (const int ranks : {1, 2, 3, 4}) {
      const ScheduleSpec spec = SpecOf(kind, ranks);
      RunRigs(ranks, [&](RankRig& rig) {
        Chain chain(rig, spec.stages());
        chain.Expect(spec.microbatches);
        RunPlainly(rig, chain, spec.stages(), spec.microbatches);
        std::vector<std::vector<double>> expected;
        for (int s = 0; s < spec.stages(); ++s) expected.push_back(chain.Gradient(s));
        chain.Expect(spec.microbatches);
        PipelineExecutor executor(OptionsOf(rig));
        const auto schedule = MakeSchedule(spec);
        ASSERT_TRUE(schedule.ok());
        const absl::Status status = executor.Run(
            rig.ctx, *schedule, [&](const StageInput& in) { return chain.Forward(in); });
        ASSERT_TRUE(status.ok()) << Message(status);
        for (int s = 0; s < spec.stages(); ++s) {
          if (RankOfStage(spec, s) != rig.rank()) continue;
          EXPECT_EQ(chain.Gradient(s), expected[static_cast<size_t>(s)]) << Name(kind) << " " << s;
        }
      });
    }
  }
}

TEST(PipelineExecutor, ForwardsAloneRunAnyNumberOfMicrobatches) {
  for (const config::PipelineSchedule kind : AllSchedules()) {
    ScheduleSpec spec = SpecOf(kind, 3);
    spec.microbatches = 2;
    RunRigs(3, [&](RankRig& rig) {
      Chain chain(rig, spec.stages());
      chain.Expect(spec.microbatches);
      RunPlainly(rig, chain, spec.stages(), spec.microbatches);
      const std::map<int, Tensor> expected = chain.outputs();
      chain.Expect(1);
      PipelineExecutor executor(OptionsOf(rig));
      const absl::Status status =
          executor.Run(rig.ctx, MakeForwardSchedule(spec),
                       [&](const StageInput& in) { return chain.Forward(in); });
      ASSERT_TRUE(status.ok()) << Message(status);
      if (RankOfStage(spec, spec.stages() - 1) != rig.rank()) return;
      ASSERT_EQ(chain.outputs().size(), 2u);
      for (const auto& [m, output] : chain.outputs()) {
        EXPECT_EQ(Distance(output, expected.at(m)), 0) << Name(kind) << " " << m;
      }
    });
  }
}

class CountReceives : public ForwardingGroup {
 public:
  CountReceives(std::unique_ptr<Communicator> group, int* count)
      : ForwardingGroup(std::move(group)), count_(count) {}
  WorkPtr Receive(const Tensor& tensor, int from, const OpLabel& label) override {
    ++*count_;
    return ForwardingGroup::Receive(tensor, from, label);
  }

 private:
  int* count_;
};

TEST(PipelineExecutor, WhatComesNextTravelsDuringAComputation) {
  const ScheduleSpec spec = SpecOf(config::PIPELINE_SCHEDULE_GPIPE, 2);
  RunRigs(2, [&](RankRig& rig) {
    Chain chain(rig, spec.stages());
    chain.Expect(spec.microbatches);
    int asked = 0;
    PipelineExecutor::Options options = OptionsOf(rig);
    CountReceives group(std::move(rig.communicator), &asked);
    options.group = &group;
    const absl::Status status = PipelineExecutor(options).Run(
        rig.ctx, MakeForwardSchedule(spec), [&](const StageInput& in) {
          // All that came so far, this one and the next.
          EXPECT_EQ(asked, group.rank() == 0 ? 0 : std::min(in.microbatch + 2, spec.microbatches));
          return chain.Forward(in);
        });
    ASSERT_TRUE(status.ok()) << Message(status);
  });
}

TEST(PipelineExecutor, ALostRankIsAStatus) {
  const ScheduleSpec spec = SpecOf(config::PIPELINE_SCHEDULE_1F1B, 2);
  RunRigs(2, [&](RankRig& rig) {
    if (rig.rank() == 1) return;
    Chain chain(rig, spec.stages());
    chain.Expect(spec.microbatches);
    PipelineExecutor executor(OptionsOf(rig));
    const absl::Status status = executor.Run(
        rig.ctx, *MakeSchedule(spec), [&](const StageInput& in) { return chain.Forward(in); });
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << Message(status);
    EXPECT_THAT(Message(status), testing::HasSubstr("rank 1"));
  });
}

}  // namespace
}  // namespace cadre
