#include "parallel/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "parallel/schedule_orders.h"
#include "parallel/schedule_validate.h"
#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

using ::testing::ElementsAre;

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

std::string Refusal(const ScheduleSpec& spec) {
  const auto schedule = MakeSchedule(spec);
  EXPECT_EQ(schedule.status().code(), absl::StatusCode::kInvalidArgument);
  return Message(schedule.status());
}

// "F0 B0": letters of computations, microbatches, stages where a rank holds several.
std::string Computations(const Schedule& schedule, int rank) {
  std::string text;
  for (const Action& a : schedule.ranks[rank]) {
    if (a.kind > ActionKind::kBackwardWeight) continue;
    if (!text.empty()) text += ' ';
    text += "FBIW"[static_cast<int>(a.kind)] + std::to_string(a.microbatch);
    if (schedule.spec.stages_per_rank > 1) text += "@" + std::to_string(a.stage);
  }
  return text;
}

std::vector<std::string> Actions(const Schedule& schedule, int rank) {
  std::vector<std::string> texts;
  for (const Action& action : schedule.ranks[rank]) texts.push_back(ToString(action));
  return texts;
}

TEST(Schedule, OrdersOfTheComputations) {
  EXPECT_EQ(Computations(Made({kGPipe, 3, 1, 3}), 1), "F0 F1 F2 B0 B1 B2");
  EXPECT_EQ(Computations(Made({kOneF, 3, 1, 4}), 0), "F0 F1 F2 B0 F3 B1 B2 B3");
  EXPECT_EQ(Computations(Made({kOneF, 3, 1, 4}), 2), "F0 B0 F1 B1 F2 B2 F3 B3");
  EXPECT_EQ(Computations(Made({kInterleaved, 2, 2, 2}), 0),
            "F0@0 F1@0 F0@2 F1@2 B0@2 B1@2 B0@0 B1@0");
  EXPECT_EQ(Computations(Made({kZbH1, 2, 1, 3}), 1), "F0 I0 F1 I1 W0 F2 I2 W1 W2");
  EXPECT_EQ(Computations(Made({kZbV, 2, 2, 3}), 1),
            "F0@1 F0@2 F1@1 F1@2 I0@2 W0@2 F2@1 I0@1 W0@1 F2@2 I1@2 W1@2 I1@1 I2@2 I2@1 W1@1 W2@2 "
            "W2@1");
}

TEST(Schedule, SendsFollowWhatMakesThemAndReceivesGoBeforeWhatNeedsThem) {
  const Schedule schedule = Made({kOneF, 2, 1, 2});
  EXPECT_THAT(
      Actions(schedule, 0),
      ElementsAre("forward stage 0 microbatch 0", "send_activation stage 0 microbatch 0 to rank 1",
                  "forward stage 0 microbatch 1", "send_activation stage 0 microbatch 1 to rank 1",
                  "receive_gradient stage 0 microbatch 0 from rank 1",
                  "backward stage 0 microbatch 0",
                  "receive_gradient stage 0 microbatch 1 from rank 1",
                  "backward stage 0 microbatch 1", "reduce_gradient stage 0", "optimizer"));
  EXPECT_THAT(Actions(schedule, 1),
              ElementsAre("receive_activation stage 1 microbatch 0 from rank 0",
                          "forward stage 1 microbatch 0", "backward stage 1 microbatch 0",
                          "send_gradient stage 1 microbatch 0 to rank 0",
                          "receive_activation stage 1 microbatch 1 from rank 0",
                          "forward stage 1 microbatch 1", "backward stage 1 microbatch 1",
                          "send_gradient stage 1 microbatch 1 to rank 0", "reduce_gradient stage 1",
                          "optimizer"));
}

TEST(Schedule, RecomputeAndUnshardStandAroundWhatNeedsThem) {
  EXPECT_THAT(Actions(Made({kOneF, 1, 1, 1, true, true}), 0),
              ElementsAre("unshard stage 0", "forward stage 0 microbatch 0",
                          "recompute stage 0 microbatch 0", "backward stage 0 microbatch 0",
                          "reduce_gradient stage 0", "reshard stage 0", "optimizer"));
}

TEST(Schedule, TheVEndsOnTheRankWhereItBegan) {
  const ScheduleSpec spec = {kZbV, 3, 2, 5};
  std::vector<int> ranks;
  for (int stage = 0; stage < spec.stages(); ++stage) ranks.push_back(RankOfStage(spec, stage));
  EXPECT_THAT(ranks, ElementsAre(0, 1, 2, 2, 1, 0));
  EXPECT_EQ(RankOfStage({kInterleaved, 3, 2, 3}, 4), 1);
}

TEST(Schedule, RefusesCountsThatItDoesNotTakeAndNamesTheNearest) {
  EXPECT_EQ(Refusal({kInterleaved, 4, 2, 5}),
            "5 microbatches over 4 pipeline ranks: interleaved_1f1b takes multiples of the "
            "pipeline's ranks; the nearest is 4");
  EXPECT_EQ(Refusal({kInterleaved, 4, 2, 6}).substr(0, 2), "6 ");
  EXPECT_THAT(Refusal({kInterleaved, 4, 2, 6}), testing::EndsWith("the nearest is 8"));
  EXPECT_THAT(Refusal({kInterleaved, 4, 2, 1}), testing::EndsWith("the nearest is 4"));
  EXPECT_EQ(Refusal({kOneF, 4, 1, 0}),
            "0 microbatches over 4 pipeline ranks: 1f1b takes any; the nearest is 1");
  EXPECT_EQ(Refusal({kOneF, 4, 2, 8}), "2 stages on each rank: 1f1b takes 1");
  EXPECT_EQ(Refusal({kInterleaved, 4, 1, 8}),
            "1 stage on each rank: interleaved_1f1b takes 2 or more");
  EXPECT_EQ(Refusal({kZbV, 4, 3, 8}), "3 stages on each rank: zb_v takes 2");
}

TEST(Schedule, HugeOnesAreRefusedBeforeTheyTakeMemory) {
  EXPECT_EQ(Refusal({kInterleaved, 2000000000, 2000000000, 1}),
            "a pipeline of 2000000000 ranks with 2000000000 stages on each; allowed: 1 to 4096 "
            "stages");
  EXPECT_EQ(Refusal({kOneF, -4, 1, 8}),
            "a pipeline of -4 ranks with 1 stage on each; allowed: 1 to 4096 stages");
  EXPECT_EQ(Refusal({kOneF, 4, 1, 2000000000}),
            "2000000000 microbatches over 4 stages; at most 262144 are taken");
}

TEST(Schedule, NamesAreTheConfigs) {
  EXPECT_EQ(AllSchedules().size(), size_t{config::PipelineSchedule_ARRAYSIZE});
  for (const config::PipelineSchedule kind : AllSchedules()) {
    const auto found = FindSchedule(Name(kind));
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(*found, kind);
  }
  EXPECT_EQ(Message(FindSchedule("zb_h2").status()),
            "pipeline schedule \"zb_h2\" is not known; allowed: gpipe, 1f1b, interleaved_1f1b, "
            "zb_h1, zb_v");
}

ScheduleSpec AnySpec() {
  const std::vector<config::PipelineSchedule> kinds = AllSchedules();
  ScheduleSpec spec = {.kind = kinds[*rc::gen::inRange<size_t>(0, kinds.size())],
                       .ranks = *rc::gen::inRange(1, 10),
                       .microbatches = *rc::gen::inRange(1, 30),
                       .recompute = *rc::gen::arbitrary<bool>(),
                       .unshard = *rc::gen::arbitrary<bool>()};
  spec.stages_per_rank = LeastStagesPerRank(spec.kind);
  if (spec.kind == kInterleaved) {
    spec.stages_per_rank = *rc::gen::inRange(2, 6);
    spec.microbatches = spec.ranks * *rc::gen::inRange(1, 6);
  }
  return spec;
}

RC_GTEST_PROP(ScheduleProperty, EverySchedulePassesTheValidator, ()) {
  const absl::Status status = ValidateSchedule(Made(AnySpec()));
  RC_LOG() << Message(status);
  RC_ASSERT(status.ok());
}

RC_GTEST_PROP(ScheduleProperty, DroppedOrDuplicatedActionsAreRefused, ()) {
  Schedule schedule = Made(AnySpec());
  std::vector<Action>& actions = schedule.ranks[*rc::gen::inRange(0, schedule.spec.ranks)];
  const int at = *rc::gen::inRange<int>(0, static_cast<int>(actions.size()));
  // A reshard before the optimizer is not missed, nor is one between two runs of one stage.
  RC_PRE(actions[at].kind != ActionKind::kReshard);
  const Action action = actions[at];
  if (*rc::gen::arbitrary<bool>()) {
    actions.erase(actions.begin() + at);
  } else {
    actions.insert(actions.begin() + at, action);
  }
  RC_LOG() << ToString(action);
  RC_ASSERT(!ValidateSchedule(schedule).ok());
}

RC_GTEST_PROP(ScheduleProperty, ChangedFieldsAreRefused, ()) {
  Schedule schedule = Made(AnySpec());
  std::vector<Action>& actions = schedule.ranks[*rc::gen::inRange(0, schedule.spec.ranks)];
  Action& action = actions[*rc::gen::inRange<size_t>(0, actions.size())];
  RC_PRE(action.kind != ActionKind::kReshard && action.kind != ActionKind::kOptimizer);
  const int by = *rc::gen::element(-1, 1);
  if (action.peer >= 0 && *rc::gen::arbitrary<bool>()) {
    action.peer += by;
  } else if (action.microbatch >= 0 && *rc::gen::arbitrary<bool>()) {
    action.microbatch += by;
  } else {
    action.stage += by;
  }
  RC_LOG() << ToString(action);
  RC_ASSERT(!ValidateSchedule(schedule).ok());
}

}  // namespace
}  // namespace cadre
