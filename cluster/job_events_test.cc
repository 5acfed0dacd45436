#include "cluster/job_events.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "cluster/rank_environment.h"

namespace cadre {
namespace {

using rendezvous::Event;
using rendezvous::Failure;

class JobEventsTest : public testing::Test {
 protected:
  using Outcome = std::optional<absl::StatusOr<Event>>;

  static void Run(const JobEvents::Due& due) {
    for (const auto& answer : due) answer();
  }
  static Event Failed(int rank, bool peer_lost = false, Failure::Kind kind = Failure::EXITED,
                      int code = 1) {
    Event event;
    event.set_kind(Event::FAILED);
    Failure& failure = *event.mutable_failure();
    failure.set_rank(rank);
    failure.set_kind(kind);
    failure.set_code(code);
    failure.set_peer_lost(peer_lost);
    return event;
  }
  static Event Plain(Event::Kind kind) {
    Event event;
    event.set_kind(kind);
    return event;
  }
  void Watch(int node, int number, Outcome* outcome) {
    Run(events_.Watch(node, number, next_ticket_++,
                      [outcome](const absl::StatusOr<Event>& event) { *outcome = event; }));
  }
  void Report(int node, const Event& event) { Run(events_.Report(node, event, now_)); }

  JobEvents events_{1, 2, true};
  JobEvents::Clock::time_point now_{};
  uint64_t next_ticket_ = 0;
};

TEST_F(JobEventsTest, DoneWhenAllNodesAre) {
  Outcome seen;
  Watch(0, 0, &seen);
  Report(1, Plain(Event::DONE));
  Report(1, Plain(Event::DONE));
  EXPECT_FALSE(seen);
  Report(0, Plain(Event::DONE));
  ASSERT_TRUE(seen && seen->ok());
  EXPECT_EQ((*seen)->kind(), Event::DONE);
}

TEST_F(JobEventsTest, TheFirstFailureIsTheJobs) {
  Outcome zero, one, late;
  Watch(0, 0, &zero);
  Watch(1, 0, &one);
  Report(1, Failed(3));
  Report(0, Failed(0));
  Watch(0, 0, &late);
  for (const Outcome* seen : {&zero, &one, &late}) {
    ASSERT_TRUE(*seen && (*seen)->ok());
    EXPECT_EQ((**seen)->kind(), Event::FAILED);
    EXPECT_EQ((**seen)->failure().rank(), 3);
    EXPECT_EQ((**seen)->failure().node(), 1);
    EXPECT_TRUE((**seen)->restart());
  }
}

TEST_F(JobEventsTest, OneThatLostAPeerIsNotTheCulprit) {
  Outcome seen;
  Watch(0, 0, &seen);
  Report(0, Failed(0, true));
  Run(events_.Expire(now_ + JobEvents::kWaitForCulprit / 2));
  EXPECT_FALSE(seen);
  Report(1, Failed(3, false, Failure::KILLED, 9));
  ASSERT_TRUE(seen);
  EXPECT_EQ((*seen)->failure().rank(), 3);
  EXPECT_EQ(events_.NextDeadline(), std::nullopt);
}

TEST_F(JobEventsTest, UnlessNobodyElseFails) {
  Outcome seen;
  Watch(0, 0, &seen);
  Report(0, Failed(1, true));
  Report(0, Failed(0, true));
  ASSERT_EQ(events_.NextDeadline(), now_ + JobEvents::kWaitForCulprit);
  Run(events_.Expire(*events_.NextDeadline()));
  ASSERT_TRUE(seen);
  EXPECT_EQ((*seen)->failure().rank(), 1);
}

TEST_F(JobEventsTest, AStopIsToldOnceAndEndsRestarts) {
  Outcome stop, after;
  Watch(1, 0, &stop);
  Report(0, Plain(Event::STOP));
  Report(1, Plain(Event::STOP));
  ASSERT_TRUE(stop);
  EXPECT_EQ((*stop)->kind(), Event::STOP);
  EXPECT_EQ(events_.outcome(), nullptr);
  Watch(1, 1, &after);
  EXPECT_FALSE(after);
  Report(0, Failed(0));
  ASSERT_TRUE(after);
  EXPECT_FALSE((*after)->restart());
}

TEST_F(JobEventsTest, AStallIsToldToAllAndIsNotTheEnd) {
  Outcome stalled, done;
  Watch(0, 0, &stalled);
  Event event = Plain(Event::STALLED);
  event.set_stalled("ranks 2, 3 wait");
  for (size_t i = 0; i < 2 * JobEvents::kMaxEvents; ++i) Report(1, event);
  ASSERT_TRUE(stalled);
  EXPECT_EQ((*stalled)->stalled(), "ranks 2, 3 wait");
  EXPECT_EQ((*stalled)->node(), 1);
  EXPECT_EQ(events_.outcome(), nullptr);
  Watch(0, JobEvents::kMaxEvents, &done);
  Report(0, Plain(Event::DONE));
  Report(1, Plain(Event::DONE));
  ASSERT_TRUE(done);
  EXPECT_EQ((*done)->kind(), Event::DONE);
}

TEST_F(JobEventsTest, WhatCannotHelpIsNotRestarted) {
  JobEvents last(2, 1, false);
  Run(last.Report(0, Failed(0), now_));
  EXPECT_FALSE(last.outcome()->restart());
  for (const int code : {kUsageExitCode, kTrainingStoppedExitCode}) {
    JobEvents hopeless(0, 1, true);
    Run(hopeless.Report(0, Failed(0, false, Failure::EXITED, code), now_));
    EXPECT_FALSE(hopeless.outcome()->restart());
  }
  JobEvents signal(0, 1, true);
  Run(signal.Report(0, Failed(0, false, Failure::KILLED, 2), now_));
  EXPECT_TRUE(signal.outcome()->restart());
}

TEST_F(JobEventsTest, ALauncherThatIsGoneFailsTheJob) {
  Outcome gone, other;
  Watch(1, 0, &gone);
  Watch(0, 0, &other);
  Run(events_.Leave(1, 77));  // not the call that waits
  EXPECT_FALSE(gone);
  Run(events_.Leave(1, 0));
  EXPECT_TRUE(gone);
  EXPECT_FALSE(other);
  Run(events_.Lose(1, now_));
  ASSERT_TRUE(other);
  EXPECT_EQ((*other)->failure().kind(), Failure::LAUNCHER_GONE);
  EXPECT_EQ((*other)->failure().node(), 1);
  EXPECT_TRUE((*other)->restart());
}

TEST_F(JobEventsTest, OneThatIsDoneMayGo) {
  Report(1, Plain(Event::DONE));
  Run(events_.Lose(1, now_));
  EXPECT_EQ(events_.outcome(), nullptr);
  Report(0, Plain(Event::DONE));
  EXPECT_EQ(events_.outcome()->kind(), Event::DONE);
}

TEST_F(JobEventsTest, AfterAResizeAllStartAgain) {
  Outcome resize, second, done;
  Watch(0, 0, &resize);
  Run(events_.Resize({2, 5}, {1}));
  Run(events_.Resize({6}, {}));
  ASSERT_TRUE(resize);
  EXPECT_EQ((*resize)->kind(), Event::RESIZE);
  EXPECT_THAT((*resize)->joining(), testing::ElementsAre(2, 5));
  EXPECT_THAT((*resize)->leaving(), testing::ElementsAre(1));
  Watch(0, 1, &done);
  Report(0, Plain(Event::DONE));
  EXPECT_FALSE(done);
  Report(1, Plain(Event::DONE));
  ASSERT_TRUE(done);
  EXPECT_EQ((*done)->kind(), Event::DONE);
  EXPECT_TRUE((*done)->restart());
}

TEST_F(JobEventsTest, ARankThatAResizeEndsTooEarlyIsNoFailure) {
  for (const Event& ended : {Failed(0, false, Failure::KILLED, SIGTERM), Failed(0, true)}) {
    JobEvents events(0, 2, false);
    Run(events.Resize({2}, {}));
    Run(events.Report(0, ended, now_));
    EXPECT_EQ(events.outcome()->kind(), Event::DONE);
    EXPECT_TRUE(events.outcome()->restart());
  }
  JobEvents crash(0, 2, false);
  Run(crash.Resize({2}, {}));
  Run(crash.Report(0, Failed(0), now_));
  EXPECT_EQ(crash.outcome()->kind(), Event::FAILED);
  EXPECT_FALSE(crash.outcome()->restart());
}

TEST_F(JobEventsTest, AJobThatEndsAnywayIsNotResized) {
  JobEvents stopping(0, 1, true);
  Run(stopping.Report(0, Plain(Event::STOP), now_));
  Run(stopping.Resize({2}, {}));
  Run(stopping.Report(0, Plain(Event::DONE), now_));
  EXPECT_FALSE(stopping.outcome()->restart());
  JobEvents stopped(0, 1, true);
  Run(stopped.Resize({2}, {}));
  Run(stopped.Report(0, Plain(Event::STOP), now_));
  Run(stopped.Report(0, Plain(Event::DONE), now_));
  EXPECT_FALSE(stopped.outcome()->restart());
  Report(0, Plain(Event::DONE));
  Run(events_.Resize({2}, {}));
  Report(1, Plain(Event::DONE));
  EXPECT_FALSE(events_.outcome()->restart());
}

TEST_F(JobEventsTest, ANewWatchReplacesTheOldOne) {
  Outcome old, fresh;
  Watch(1, 0, &old);
  Watch(1, 0, &fresh);
  ASSERT_TRUE(old);
  EXPECT_FALSE(old->ok());
  EXPECT_FALSE(fresh);
  Outcome wrong;
  Watch(0, 7, &wrong);
  EXPECT_EQ(wrong->status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(JobEventsTest, ErrorLinesAreCutAndCannotCommandATerminal) {
  Event event = Failed(0);
  event.mutable_failure()->set_last_error("\x1b[2J" + std::string(10000, 'x'));
  Report(0, event);
  const std::string& line = events_.outcome()->failure().last_error();
  EXPECT_EQ(line.size(), JobEvents::kMaxErrorBytes);
  EXPECT_EQ(line.substr(0, 5), "?[2Jx");
}

}  // namespace
}  // namespace cadre
