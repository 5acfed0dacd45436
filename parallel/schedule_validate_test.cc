#include "parallel/schedule_validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;

constexpr auto kOneF = config::PIPELINE_SCHEDULE_1F1B;
constexpr auto kZbH1 = config::PIPELINE_SCHEDULE_ZB_H1;

Schedule Made(const ScheduleSpec& spec) {
  auto schedule = MakeSchedule(spec);
  CADRE_CHECK(schedule.ok(), "{}", Message(schedule.status()));
  return *std::move(schedule);
}

std::string Finding(const Schedule& schedule) {
  const absl::Status status = ValidateSchedule(schedule);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return Message(status);
}

// The place of an action by its text.
size_t Find(const Schedule& schedule, int rank, const std::string& text) {
  const std::vector<Action>& actions = schedule.ranks[rank];
  const auto found = std::find_if(actions.begin(), actions.end(),
                                  [&](const Action& a) { return ToString(a) == text; });
  CADRE_CHECK(found != actions.end(), "{}", text);
  return found - actions.begin();
}

Schedule Without(Schedule schedule, int rank, const std::string& text) {
  std::vector<Action>& actions = schedule.ranks[rank];
  actions.erase(actions.begin() + Find(schedule, rank, text));
  return schedule;
}

Schedule Swapped(Schedule schedule, int rank, const std::string& a, const std::string& b) {
  std::vector<Action>& actions = schedule.ranks[rank];
  std::swap(actions[Find(schedule, rank, a)], actions[Find(schedule, rank, b)]);
  return schedule;
}

TEST(ScheduleValidate, ADroppedComputation) {
  const Schedule schedule = Made({kOneF, 2, 1, 3});
  EXPECT_THAT(Finding(Without(schedule, 1, "forward stage 1 microbatch 2")),
              HasSubstr("(backward stage 1 microbatch 2): its forward is not done"));
  EXPECT_THAT(Finding(Without(schedule, 0, "backward stage 0 microbatch 2")),
              HasSubstr("(reduce_gradient stage 0): gradients are still to come"));
}

TEST(ScheduleValidate, ADroppedTransfer) {
  const Schedule schedule = Made({kOneF, 2, 1, 3});
  EXPECT_EQ(Finding(Without(schedule, 0, "send_activation stage 0 microbatch 2 to rank 1")),
            "rank 0, action 9 (receive_gradient stage 0 microbatch 2 from rank 1): waits for ever");
  EXPECT_THAT(Finding(Without(schedule, 0, "send_activation stage 0 microbatch 0 to rank 1")),
              HasSubstr("the next message is send_activation stage 0 microbatch 1 to rank 1"));
  EXPECT_THAT(Finding(Without(schedule, 1, "receive_activation stage 1 microbatch 2 from rank 0")),
              HasSubstr("(forward stage 1 microbatch 2): its activation is not here"));
  EXPECT_THAT(Finding(Without(schedule, 0, "receive_gradient stage 0 microbatch 0 from rank 1")),
              HasSubstr("(backward stage 0 microbatch 0): its gradient is not here"));
}

TEST(ScheduleValidate, SwappedActions) {
  const Schedule schedule = Made({kOneF, 3, 1, 4});
  EXPECT_THAT(Finding(Swapped(schedule, 0, "forward stage 0 microbatch 0",
                              "send_activation stage 0 microbatch 0 to rank 1")),
              HasSubstr("is not computed yet"));
  EXPECT_THAT(Finding(Swapped(schedule, 0, "send_activation stage 0 microbatch 1 to rank 1",
                              "send_activation stage 0 microbatch 2 to rank 1")),
              HasSubstr("is not computed yet"));
  EXPECT_THAT(Finding(Swapped(schedule, 1, "receive_activation stage 1 microbatch 0 from rank 0",
                              "receive_activation stage 1 microbatch 1 from rank 0")),
              HasSubstr("the next message is"));
  EXPECT_THAT(Finding(Swapped(Made({kZbH1, 2, 1, 3}), 1, "backward_weight stage 1 microbatch 1",
                              "backward_weight stage 1 microbatch 2")),
              HasSubstr("weight gradients do not rise with the microbatches"));
}

// Each rank waits for the other's message before it sends its own.
TEST(ScheduleValidate, ADeadlock) {
  Schedule schedule = Made({kOneF, 2, 1, 1});
  std::vector<Action>& actions = schedule.ranks[0];
  const size_t receive = Find(schedule, 0, "receive_gradient stage 0 microbatch 0 from rank 1");
  std::rotate(actions.begin(), actions.begin() + receive, actions.begin() + receive + 1);
  EXPECT_EQ(Finding(schedule),
            "rank 0, action 0 (receive_gradient stage 0 microbatch 0 from rank 1): waits for ever");
}

TEST(ScheduleValidate, MoreInFlightThanPromised) {
  Schedule schedule = Made({config::PIPELINE_SCHEDULE_GPIPE, 2, 1, 4});
  EXPECT_TRUE(ValidateSchedule(schedule).ok());
  schedule.spec.kind = kOneF;
  EXPECT_THAT(Finding(schedule),
              HasSubstr("more than the 2 forwards in flight that the schedule promises"));
}

TEST(ScheduleValidate, TheStepsEnd) {
  const Schedule schedule = Made({kOneF, 2, 1, 2});
  EXPECT_EQ(Finding(Without(schedule, 1, "optimizer")), "rank 1: no optimizer");
  EXPECT_THAT(Finding(Without(schedule, 1, "reduce_gradient stage 1")),
              HasSubstr("the gradients of stage 1 are not reduced"));
  EXPECT_THAT(Finding(Swapped(schedule, 1, "optimizer", "reduce_gradient stage 1")),
              HasSubstr("(optimizer): the gradients of stage 1 are not reduced"));
}

TEST(ScheduleValidate, RecomputeAndUnshard) {
  const Schedule schedule = Made({kOneF, 2, 1, 2, true, true});
  EXPECT_THAT(Finding(Without(schedule, 1, "recompute stage 1 microbatch 1")),
              HasSubstr("its activations are not recomputed"));
  EXPECT_THAT(Finding(Without(schedule, 1, "unshard stage 1")),
              HasSubstr("the stage is not unsharded"));
}

TEST(ScheduleValidate, FieldsOutOfRange) {
  const Schedule good = Made({kOneF, 2, 1, 2});
  Schedule bad = good;
  bad.ranks[0][0].stage = 7;
  EXPECT_THAT(Finding(bad), HasSubstr("no stage of this rank"));
  bad = good;
  bad.ranks[0][0].microbatch = 2;
  EXPECT_THAT(Finding(bad), HasSubstr("no such microbatch"));
  bad = good;
  bad.ranks.pop_back();
  EXPECT_EQ(Finding(bad), "1 vectors of actions for 2 ranks");
}

// The last rank of 1f1b, its steady part as pairs: a backward beside the next microbatch's forward.
TEST(ScheduleValidate, OverlappedPairs) {
  const auto act = [](ActionKind kind, int microbatch) {
    return Action{.kind = kind, .stage = 0, .microbatch = microbatch};
  };
  Action pair = act(ActionKind::kOverlappedPair, 1);
  pair.backward_stage = 0;
  pair.backward_microbatch = 0;
  Schedule schedule = {.spec = {config::PIPELINE_SCHEDULE_GPIPE, 1, 1, 2},
                       .ranks = {{act(ActionKind::kForward, 0),
                                  pair,
                                  act(ActionKind::kBackward, 1),
                                  {.kind = ActionKind::kReduceGradient, .stage = 0},
                                  {.kind = ActionKind::kOptimizer}}}};
  EXPECT_TRUE(ValidateSchedule(schedule).ok()) << ValidateSchedule(schedule);
  schedule.ranks[0][1].backward_microbatch = 1;
  EXPECT_THAT(Finding(schedule), HasSubstr("its forward is not done"));
}

}  // namespace
}  // namespace cadre
