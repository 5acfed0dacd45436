#include "cluster/hang_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cadre {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

// A rank at step 17 whose steps took half a second, that last moved at second 100.
RankView View(int rank) {
  FlightSnapshot record;
  record.rank = rank;
  record.step = 17;
  record.step_durations_ns = {kSecond / 2, kSecond / 2, 9 * kSecond};
  record.progress_ns = 100 * kSecond;
  return {.rank = rank, .record = record};
}

void Add(RankView& view, const std::string& group, uint32_t sequence, OperationState state,
         int64_t queued_ns = 100 * kSecond) {
  auto& operations = view.record->operations;
  operations.push_back({.id = operations.size() + 1,
                        .state = state,
                        .sequence = sequence,
                        .group = group,
                        .operation = "all_reduce",
                        .label = "layer 3 mlp",
                        .queued_ns = queued_ns,
                        .finished_ns = state == OperationState::kDone ? queued_ns : 0});
}

constexpr auto kAwaited = OperationState::kAwaited, kDone = OperationState::kDone,
               kQueued = OperationState::kQueued;

// Four ranks that wait in operation 8 of tp, but for those named.
std::vector<RankView> Waiting(std::vector<int> others) {
  std::vector<RankView> views;
  for (int rank = 0; rank < 4; ++rank) {
    views.push_back(View(rank));
    Add(views.back(), "tp", 7, kDone);
    if (std::find(others.begin(), others.end(), rank) == others.end()) {
      Add(views.back(), "tp", 8, kAwaited);
    }
  }
  return views;
}

std::string Text(const std::vector<RankView>& views, double seconds = 102.1,
                 const HangOptions& options = {}) {
  const auto report = FindHang(views, static_cast<int64_t>(seconds * kSecond), options);
  return report ? report->text : "";
}

TEST(HangReport, ARankThatNeverEntered) {
  auto views = Waiting({2});
  views[2].record->activity = "forward";
  views[2].record->layer = 3;
  EXPECT_EQ(
      Text(views),
      "rank 2 hangs in forward of layer 3 at step 17; ranks 0, 1, 3 wait for it in all_reduce "
      "'layer 3 mlp' of group tp since 2.1 s");
  const auto report = FindHang(views, 103 * kSecond, {});
  ASSERT_TRUE(report);
  EXPECT_EQ(report->rank, 2);
  EXPECT_EQ(report->progress_ns, 100 * kSecond);
}

TEST(HangReport, AStoppedRankInTheCollective) {
  auto views = Waiting({});
  views[2].stopped = true;
  EXPECT_EQ(
      Text(views),
      "rank 2 hangs (stopped by a signal) in all_reduce 'layer 3 mlp' of group tp at step 17; "
      "ranks 0, 1, 3 wait for it since 2.1 s");
}

TEST(HangReport, NothingIsSaidTooEarly) {
  auto views = Waiting({2});
  EXPECT_EQ(Text(views, 101.9), "");
  EXPECT_NE(Text(views, 102), "");
  // Three steps of 2 s.
  for (RankView& view : views) view.record->step_durations_ns = {2 * kSecond};
  EXPECT_EQ(Text(views, 105.9), "");
  EXPECT_NE(Text(views, 106), "");
  // Somebody moved.
  views[1].record->progress_ns = 105 * kSecond;
  EXPECT_EQ(Text(views, 110.9), "");
}

TEST(HangReport, StartingUpTakesLonger) {
  auto views = Waiting({2});
  for (RankView& view : views) view.record->step_durations_ns.clear();
  EXPECT_EQ(Text(views, 210), "");
  EXPECT_NE(Text(views, 221), "");
  views[2].stopped = true;
  EXPECT_NE(Text(views, 102), "");
}

TEST(HangReport, WhereNobodyWaitsNobodyHangs) {
  std::vector<RankView> views = {View(0), View(1)};
  Add(views[0], "tp", 7, kDone);
  EXPECT_EQ(Text(views, 1000), "");
  EXPECT_EQ(Text({}, 1000), "");
  views[1].stopped = true;
  EXPECT_EQ(Text(views),
            "rank 1 hangs (stopped by a signal) at step 17; nothing moves since 2.1 s");
}

// 0 waits in tp for 1, which waits in dp for 3, which computes.
TEST(HangReport, AChainEndsAtTheOneThatWaitsForNobody) {
  std::vector<RankView> views = {View(0), View(1), View(2), View(3)};
  for (RankView& view : views) {
    Add(view, "tp", 4, kDone);
    Add(view, "dp", 1, kDone);
  }
  Add(views[0], "tp", 5, kAwaited, 99 * kSecond);
  Add(views[1], "dp", 2, kAwaited);
  Add(views[2], "tp", 5, kAwaited);
  views[3].record->activity = "backward";
  EXPECT_EQ(FindHang(views, 103 * kSecond, {})->rank, 3);
}

void AddPeer(RankView& view, const std::string& operation, uint32_t sequence, int peer,
             OperationState state, int64_t queued_ns = 100 * kSecond) {
  view.record->operations.push_back({.id = view.record->operations.size() + 1,
                                     .state = state,
                                     .sequence = sequence,
                                     .peer = peer,
                                     .group = "pp",
                                     .operation = operation,
                                     .label = "activation",
                                     .queued_ns = queued_ns});
}

// Sequences are between two ranks, and the one that computes has its next receive in flight.
TEST(HangReport, AStageThatComputesWhileItsNeighboursWait) {
  std::vector<RankView> views = {View(0), View(1), View(2)};
  AddPeer(views[0], "send", 4, 1, kDone);
  AddPeer(views[0], "receive", 2, 1, kAwaited);
  AddPeer(views[1], "receive", 5, 0, kQueued, 99 * kSecond);
  views[1].record->activity = "forward";
  views[1].record->layer = 7;
  AddPeer(views[2], "receive", 9, 1, kAwaited, 101 * kSecond);
  EXPECT_EQ(Text(views),
            "rank 1 hangs in forward of layer 7 at step 17; ranks 0, 2 wait for it in receive "
            "'activation' of group pp since 2.1 s");
  views[1].stopped = true;
  EXPECT_EQ(Text(views).substr(0, 59),
            "rank 1 hangs (stopped by a signal) in forward of layer 7 at");
}

// 2 waits for 1, which waits for 0, which waits in tp for 3, which computes.
TEST(HangReport, AChainOverStagesAndGroups) {
  std::vector<RankView> views = {View(0), View(1), View(2), View(3)};
  for (RankView& view : views) Add(view, "tp", 4, kDone);
  AddPeer(views[2], "receive", 3, 1, kAwaited, 99 * kSecond);
  AddPeer(views[1], "receive", 3, 0, kAwaited);
  Add(views[0], "tp", 5, kAwaited);
  EXPECT_EQ(FindHang(views, 103 * kSecond, {})->rank, 3);
  // In a circle nobody is behind.
  views[0].record->operations.pop_back();
  AddPeer(views[0], "receive", 3, 2, kAwaited);
  EXPECT_EQ(FindHang(views, 103 * kSecond, {})->rank, -1);
  // Nor is anybody here where a rank of another node is waited for.
  views[0].record->operations.back().peer = 9;
  EXPECT_EQ(FindHang(views, 103 * kSecond, {.world_size = 12})->rank, -1);
}

// The one that computes has a checkpoint under way, whose ranks wait for one another.
TEST(HangReport, WaitsBesideTheComputationSayLess) {
  auto views = Waiting({2});
  for (RankView& view : views) {
    view.record->thread = 7;
    for (OperationRecord& operation : view.record->operations) operation.thread = 7;
    Add(view, "checkpoint", 3, kAwaited, 98 * kSecond);
    view.record->operations.back().thread = 8;
  }
  views[2].record->activity = "optimizer";
  EXPECT_EQ(Text(views),
            "rank 2 hangs in optimizer at step 17; ranks 0, 1, 3 wait for it in all_reduce 'layer "
            "3 mlp' of group tp since 2.1 s");
  // Where nobody else waits they are all there is.
  for (RankView& view : views)
    std::erase_if(view.record->operations, [](const auto& o) { return o.group == "tp"; });
  views[2].record->operations.clear();
  views[2].record->activity = "saving a checkpoint";
  EXPECT_EQ(Text(views), "");
  EXPECT_EQ(Text(views, 701),
            "rank 2 hangs in saving a checkpoint at step 17; ranks 0, 1, 3 wait for it in "
            "all_reduce 'layer 3 mlp' of group checkpoint since 603.0 s");
}

// Nobody asks a server anything; one that does not come to what the others compute is a hang.
TEST(HangReport, RanksThatHearNothingToDoAreNoHang) {
  std::vector<RankView> views;
  for (int rank = 0; rank < 3; ++rank) {
    views.push_back(View(rank));
    Add(views.back(), "control", 7, kDone);
    if (rank > 0) Add(views.back(), "control", 8, kAwaited);
  }
  EXPECT_EQ(Text(views, 100000), "");
  views[0].stopped = true;
  EXPECT_EQ(Text(views),
            "rank 0 hangs (stopped by a signal) at step 17; nothing moves since 2.1 s");
  views[0].stopped = false;
  Add(views[0], "tp", 1, kAwaited);
  Add(views[2], "tp", 1, kAwaited);
  views[1].record->operations.back().state = kDone;
  EXPECT_EQ(Text(views),
            "rank 1 hangs at step 17; ranks 0, 2 wait for it in all_reduce 'layer 3 mlp' of group "
            "tp since 2.1 s");
}

// A disk may be slow; what is stopped is not waiting for one.
TEST(HangReport, WaitsForDisksAreNoHangUnlessARankIsStopped) {
  auto views = Waiting({2});
  for (RankView& view : views) {
    for (OperationRecord& operation : view.record->operations) operation.group = "checkpoint";
  }
  EXPECT_EQ(Text(views, 200), "");
  EXPECT_THAT(Text(views, 701), testing::HasSubstr("rank 2 hangs"));
  views[2].stopped = true;
  EXPECT_THAT(Text(views), testing::HasSubstr("rank 2 hangs (stopped by a signal)"));
}

TEST(HangReport, ARankThatHasNotRecordedAnything) {
  auto views = Waiting({2});
  views[2].record.reset();
  EXPECT_EQ(Text(views),
            "rank 2 hangs before it recorded anything; ranks 0, 1, 3 wait for it in all_reduce "
            "'layer 3 mlp' of group tp since 2.1 s");
}

TEST(HangReport, ARankThatEndedWhileOthersWait) {
  auto views = Waiting({2});
  views[2].ended = true;
  EXPECT_EQ(Text(views).substr(0, 42), "rank 2 hangs (its process has ended) at st");
}

TEST(HangReport, OperationsInFlightDoNotHideWhoIsBehind) {
  // 2 has a bucket in flight that the others have entered, too, and computes.
  auto views = Waiting({2});
  for (RankView& view : views) Add(view, "dp", 1, kQueued, 101 * kSecond);
  const auto report = FindHang(views, 103 * kSecond, {});
  ASSERT_TRUE(report);
  EXPECT_EQ(report->rank, 2);
}

TEST(HangReport, OneThatRanksOfAnotherNodeWaitFor) {
  std::vector<RankView> views = {View(4)};
  Add(views[0], "dp", 7, kDone);
  views[0].record->activity = "backward";
  EXPECT_EQ(Text(views), "");
  const HangOptions told{.world_size = 8,
                         .others_wait = "ranks 0-3 wait in x since 2.1 s",
                         .others_wait_ns = 102 * kSecond};
  EXPECT_EQ(Text(views, 102.1, told),
            "rank 4 hangs in backward at step 17; ranks 0-3 wait in x since 2.1 s");
  EXPECT_EQ(Text(views, 101, told), "");
  views[0].record->progress_ns = 103 * kSecond;
  EXPECT_EQ(Text(views, 110, told), "");  // that hang is over
}

TEST(HangReport, WhereAllHaveEntered) {
  EXPECT_EQ(
      Text(Waiting({})),
      "ranks 0-3 wait in all_reduce 'layer 3 mlp' of group tp since 2.1 s; all have entered it: "
      "the transport does not move");
  EXPECT_EQ(
      Text(Waiting({}), 102.1, {.world_size = 8}),
      "ranks 0-3 wait in all_reduce 'layer 3 mlp' of group tp since 2.1 s; who holds them up is "
      "on another node");
}

}  // namespace
}  // namespace cadre
