#include "parallel/schedule_simulate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

constexpr auto kGPipe = config::PIPELINE_SCHEDULE_GPIPE;
constexpr auto kOneF = config::PIPELINE_SCHEDULE_1F1B;
constexpr auto kInterleaved = config::PIPELINE_SCHEDULE_INTERLEAVED_1F1B;
constexpr auto kZbH1 = config::PIPELINE_SCHEDULE_ZB_H1;
constexpr auto kZbV = config::PIPELINE_SCHEDULE_ZB_V;

Schedule Made(const ScheduleSpec& spec) {
  auto schedule = MakeSchedule(spec);
  CADRE_CHECK(schedule.ok(), "{}", Message(schedule.status()));
  return *std::move(schedule);
}

Simulation Simulated(const ScheduleSpec& spec, const ActionDurations& durations = {}) {
  auto simulation = SimulateSchedule(Made(spec), durations);
  CADRE_CHECK(simulation.ok(), "{}", Message(simulation.status()));
  return *std::move(simulation);
}

std::vector<double> Peaks(const Simulation& simulation) {
  std::vector<double> peaks;
  for (const SimulatedRank& rank : simulation.ranks) peaks.push_back(rank.peak_activations);
  return peaks;
}

constexpr double kTiny = 1e-9;

// Forward, input gradient and weight gradient of unlike lengths.
ActionDurations Unlike() { return {.forward = 1, .backward_input = 1.25, .backward_weight = 0.75}; }

TEST(ScheduleSimulate, GPipeAnd1F1BIdleForTheirTextbookShare) {
  for (int p = 2; p <= 8; ++p) {
    for (const int m : {p, p + 1, 2 * p, 5 * p}) {
      for (const auto kind : {kGPipe, kOneF}) {
        const Simulation s = Simulated({kind, p, 1, m}, Unlike());
        EXPECT_NEAR(s.ideal, m * 3.0, kTiny);
        EXPECT_NEAR(s.bubble_to_ideal(), double(p - 1) / m, kTiny) << Name(kind) << p << " " << m;
        EXPECT_NEAR(s.bubble_share(), double(p - 1) / (m + p - 1), kTiny);
      }
    }
  }
}

TEST(ScheduleSimulate, InterleavingDividesTheBubbleByTheStagesOnARank) {
  for (int p = 2; p <= 8; ++p) {
    for (const int v : {2, 3, 4}) {
      for (const int groups : {1, 2, 5}) {
        const Simulation s = Simulated({kInterleaved, p, v, groups * p}, Unlike());
        EXPECT_NEAR(s.bubble_to_ideal(), double(p - 1) / (v * groups * p), kTiny) << p << " " << v;
      }
    }
  }
}

TEST(ScheduleSimulate, ZeroBubbleH1IdlesForwardPlusInputLessWeight) {
  for (int p = 2; p <= 8; ++p) {
    for (const int m : {p, p + 1, 2 * p, 5 * p}) {
      for (const ActionDurations& d : {ActionDurations(), Unlike()}) {
        const Simulation s = Simulated({kZbH1, p, 1, m}, d);
        EXPECT_NEAR(s.makespan - s.ideal,
                    (p - 1) * (d.forward + d.backward_input - d.backward_weight), kTiny);
      }
    }
  }
}

TEST(ScheduleSimulate, ZeroBubbleVIdlesOnlyBeforeAndAfterItsWork) {
  for (int p = 2; p <= 8; ++p) {
    for (const int m : {2 * p - 1, 2 * p, 5 * p}) {
      const Simulation s = Simulated({kZbV, p, 2, m});
      EXPECT_NEAR(s.makespan - s.ideal, (p - 1) * 0.5, kTiny) << "ranks start half a forward apart";
      for (const SimulatedRank& rank : s.ranks) EXPECT_NEAR(rank.idle_inside, 0, kTiny);
    }
    EXPECT_GT(Simulated({kZbV, p, 2, 2 * p - 2}).ranks[0].idle_inside, 0.1);
  }
}

TEST(ScheduleSimulate, PeakActivations) {
  using ::testing::Each;
  using ::testing::ElementsAre;
  EXPECT_THAT(Peaks(Simulated({kGPipe, 4, 1, 7})), Each(7));
  EXPECT_THAT(Peaks(Simulated({kOneF, 4, 1, 7})), ElementsAre(4, 3, 2, 1));
  EXPECT_THAT(Peaks(Simulated({kOneF, 4, 1, 2})), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(Peaks(Simulated({kInterleaved, 4, 2, 8})), ElementsAre(5.5, 4.5, 3.5, 2.5));
  EXPECT_THAT(Peaks(Simulated({kZbH1, 4, 1, 7})), Each(4));
  EXPECT_THAT(Peaks(Simulated({kZbV, 4, 2, 7})), Each(4));
}

// A pipeline is as slow as its dearest stage: every further microbatch costs that stage's time.
TEST(ScheduleSimulate, UnevenStages) {
  const ActionDurations uneven = {.stage_cost = {0.5, 2, 0.5, 1}};
  const double few = Simulated({kOneF, 4, 1, 20}, uneven).makespan;
  const double more = Simulated({kOneF, 4, 1, 50}, uneven).makespan;
  EXPECT_NEAR((more - few) / 30, 2 * 3.0, kTiny);
  const Simulation s = Simulated({kOneF, 4, 1, 50}, uneven);
  EXPECT_NEAR(s.ideal, 50 * 3.0, kTiny);
  EXPECT_NEAR(s.ranks[1].busy, 50 * 6.0, kTiny);
  EXPECT_LT(s.idle(1), s.idle(0));
}

TEST(ScheduleSimulate, MessagesTakeTimeWhileRanksCompute) {
  // One microbatch: each message of the way there and back is waited for.
  const ActionDurations slow = {.communication = 0.5};
  EXPECT_NEAR(Simulated({kOneF, 3, 1, 1}, slow).makespan, 3 * 3 + 4 * 0.5, kTiny);
  // Of the V's four stages the middle two lie on one rank; two weight gradients stand in the way.
  const double forwards = 4 * 0.5, inputs = 4 * 0.5, weights = 2 * 0.5, messages = 4 * 0.5;
  EXPECT_NEAR(Simulated({kZbV, 2, 2, 1}, slow).makespan, forwards + inputs + weights + messages,
              kTiny);
}

TEST(ScheduleSimulate, RecomputingCostsAForwardPerBackward) {
  const Simulation s = Simulated({kOneF, 4, 1, 8, true});
  EXPECT_NEAR(s.ideal, 8 * 4.0, kTiny);
  // It starts before the gradient is there, so the bubble is the forward's and the backward's
  // alone.
  EXPECT_NEAR(s.makespan - s.ideal, 3 * 3.0, kTiny);
}

TEST(ScheduleSimulate, TheOrderOfSchedules) {
  const auto makespan = [](config::PipelineSchedule kind) {
    return Simulated({kind, 4, LeastStagesPerRank(kind), 16}).makespan;
  };
  EXPECT_EQ(makespan(kGPipe), makespan(kOneF));
  EXPECT_LT(makespan(kInterleaved), makespan(kOneF));
  EXPECT_LT(makespan(kZbH1), makespan(kInterleaved));
  EXPECT_LT(makespan(kZbV), makespan(kZbH1));
}

TEST(ScheduleSimulate, RefusesDurationsThatAreNone) {
  const auto message = [](const ActionDurations& durations) {
    return Message(SimulateSchedule(Made({kOneF, 2, 1, 2}), durations).status());
  };
  EXPECT_EQ(message({.forward = 0}), "durations: a forward takes more than 0, nothing less than 0");
  EXPECT_EQ(message({.communication = -1}),
            "durations: a forward takes more than 0, nothing less than 0");
  EXPECT_EQ(message({.stage_cost = {1, 2, 3}}), "durations: costs of 3 stages, but there are 2");
  EXPECT_EQ(message({.stage_cost = {1, -2}}),
            "durations: a stage's cost is negative or not finite");
}

// Whatever the durations, the bound of any schedule holds and ranks do one thing at a time.
RC_GTEST_PROP(ScheduleSimulateProperty, NoScheduleBeatsItsWork, ()) {
  const std::vector<config::PipelineSchedule> kinds = AllSchedules();
  ScheduleSpec spec = {.kind = kinds[*rc::gen::inRange<size_t>(0, kinds.size())],
                       .ranks = *rc::gen::inRange(1, 7)};
  spec.stages_per_rank = LeastStagesPerRank(spec.kind);
  spec.microbatches = spec.ranks * *rc::gen::inRange(1, 5);
  const auto time = [] { return *rc::gen::inRange(1, 20) / 4.0; };
  ActionDurations durations = {.forward = time(),
                               .backward_input = time(),
                               .backward_weight = time(),
                               .communication = time()};
  for (int stage = 0; stage < spec.stages(); ++stage) durations.stage_cost.push_back(time());
  const Simulation s = Simulated(spec, durations);
  RC_ASSERT(s.makespan >= s.ideal - kTiny);
  for (int rank = 0; rank < spec.ranks; ++rank) {
    RC_ASSERT(s.idle(rank) >= s.ranks[rank].idle_inside - kTiny);
    RC_ASSERT(s.ranks[rank].idle_inside >= -kTiny);
    double end = 0;
    for (const Span& span : s.ranks[rank].spans) {
      RC_ASSERT(span.start == end && span.end >= span.start);
      end = span.end;
    }
  }
}

}  // namespace
}  // namespace cadre
