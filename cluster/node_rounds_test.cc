#include "cluster/node_rounds.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/node_range.h"

namespace cadre {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class NodeRoundsTest : public testing::Test {
 protected:
  using Outcome = absl::StatusOr<std::shared_ptr<const NodeRounds::Start>>;

  void Use(int min, int max, NodeRounds::CheckWorld check = nullptr) {
    rounds_.emplace(NodeRounds::Options{
        .min_nodes = min, .max_nodes = max, .last_call = seconds(30), .check_world = check});
    size_ = max;
  }
  NodeRounds::Member Node(int number) const {
    return {.number = number, .size = size_, .claim = claims_[static_cast<size_t>(number)]};
  }
  // A launcher as it behaves: connected, with the start after its last one. Its place in answers_
  // gets what it is told.
  size_t Join(int number, int64_t generation = -1, int processes = 1) {
    EXPECT_TRUE(rounds_->Attend(Node(number)).ok());
    return Call(Node(number), generation, processes);
  }
  size_t Call(NodeRounds::Member member, int64_t generation, int processes = 1) {
    const size_t place = answers_.size();
    answers_.emplace_back();
    Run(rounds_->Join({.member = member,
                       .generation = generation,
                       .processes = processes,
                       .timeout = seconds(60),
                       .ticket = place,
                       .answer = [this, place](const Outcome& start) { answers_[place] = start; }},
                      now_));
    return place;
  }
  void Leave(int number) {
    Run(rounds_->Leave(Node(number), now_));
    ++claims_[static_cast<size_t>(number)];  // who comes next is another one
  }
  void Pass(seconds time) {
    now_ += time;
    Run(rounds_->Expire(now_));
  }
  static void Run(const NodeRounds::Due& due) {
    for (const auto& answer : due) answer();
  }
  // "generation: nodes, first ranks / world", or the error, or "waits".
  std::string Told(size_t place) const {
    const std::optional<Outcome>& answer = answers_[place];
    if (!answer) return "waits";
    if (!answer->ok()) return Message(answer->status());
    const NodeRounds::Start& start = ***answer;
    std::string text = fmt::format("{}:", start.generation);
    for (size_t i = 0; i < start.nodes.size(); ++i) {
      text += fmt::format(" {}@{}", start.nodes[i], start.first_rank[i]);
    }
    return text + fmt::format(" / {}", start.world_size);
  }

  std::optional<NodeRounds> rounds_;
  int size_ = 0;
  std::vector<uint64_t> claims_ = std::vector<uint64_t>(8, 100);
  NodeRounds::Clock::time_point now_{};
  std::vector<std::optional<Outcome>> answers_;
};

TEST_F(NodeRoundsTest, AFixedNumberStartsWhenAllCame) {
  Use(3, 3);
  const size_t two = Join(2, -1, 4), zero = Join(0, -1, 1);
  Pass(seconds(59));
  EXPECT_EQ(Told(zero), "waits");
  const size_t one = Join(1, -1, 2);
  for (const size_t place : {zero, one, two}) EXPECT_EQ(Told(place), "0: 0@0 1@1 2@3 / 7");
  EXPECT_EQ(rounds_->NextDeadline(), std::nullopt);
  rounds_->End(true);
  Join(2, 1, 4);
  Join(1, 1, 2);
  EXPECT_EQ(Told(Join(0, 1)), "1: 0@0 1@1 2@3 / 7");
}

TEST_F(NodeRoundsTest, ATimeOutNamesWhoIsMissing) {
  Use(3, 3);
  const size_t one = Join(1);
  Pass(seconds(60));
  EXPECT_EQ(Told(one), "launchers: after 60 s nodes 0, 2 of 3 did not come");
  Use(3, 5);
  const size_t zero = Join(0), four = Join(4);
  Pass(seconds(60));
  EXPECT_EQ(Told(zero), "launchers: after 60 s nodes 1-3 of 5 did not come; at least 3 are needed");
  EXPECT_EQ(Told(four), Told(zero));
  EXPECT_EQ(rounds_->NextDeadline(), std::nullopt);
}

TEST_F(NodeRoundsTest, ALastCallAfterTheFewest) {
  Use(2, 4);
  const size_t zero = Join(0);
  Pass(seconds(10));
  Join(3);
  EXPECT_EQ(rounds_->NextDeadline(), now_ + seconds(30));
  Pass(seconds(29));
  EXPECT_EQ(Told(zero), "waits");
  Pass(seconds(1));
  EXPECT_EQ(Told(zero), "0: 0@0 3@1 / 2");
  EXPECT_EQ(rounds_->NextDeadline(), std::nullopt);
}

TEST_F(NodeRoundsTest, AllThatThereMayBeNeedNoLastCall) {
  Use(1, 2);
  const size_t zero = Join(0);
  EXPECT_EQ(Told(zero), "waits");
  Join(1);
  EXPECT_EQ(Told(zero), "0: 0@0 1@1 / 2");
}

TEST_F(NodeRoundsTest, WithoutALossTheNextStartDoesNotWait) {
  Use(1, 4);
  Join(0);
  Join(1);
  Pass(seconds(30));
  rounds_->End(true);
  const size_t one = Join(1, 1);
  EXPECT_EQ(Told(one), "waits");  // for node 0, which is there
  Join(0, 1);
  EXPECT_EQ(Told(one), "1: 0@0 1@1 / 2");
}

TEST_F(NodeRoundsTest, AfterALossThereIsALastCall) {
  Use(1, 3);
  Join(0);
  Join(1);
  Join(2);
  Leave(1);
  rounds_->End(true);
  const size_t zero = Join(0, 1);
  Pass(seconds(1));
  EXPECT_EQ(rounds_->NextDeadline(), now_ + seconds(59));  // node 2 is still there
  Join(2, 1);
  EXPECT_EQ(rounds_->NextDeadline(), now_ + seconds(30));
  Pass(seconds(30));
  EXPECT_EQ(Told(zero), "1: 0@0 2@1 / 2");
}

TEST_F(NodeRoundsTest, AfterALossTooFewAreWaitedForUntilTheTimeOut) {
  Use(2, 3);
  Join(0);
  Join(1);
  Join(2);
  Leave(1);
  Leave(2);
  rounds_->End(true);
  const size_t zero = Join(0, 1);
  Pass(seconds(59));
  EXPECT_EQ(Told(zero), "waits");
  Pass(seconds(1));
  EXPECT_EQ(Told(zero),
            "launchers: after 60 s nodes 1, 2 of 3 did not come; at least 2 are needed");
}

TEST_F(NodeRoundsTest, OneThatComesBackInTimeIsInAgain) {
  Use(1, 2);
  Join(0);
  Join(1);
  Leave(1);
  rounds_->End(true);
  const size_t zero = Join(0, 1);
  Pass(seconds(5));
  const size_t one = Join(1);
  EXPECT_EQ(Told(zero), "1: 0@0 1@1 / 2");
  EXPECT_EQ(Told(one), Told(zero));
}

TEST_F(NodeRoundsTest, OneThatIsConnectedAndDoesNotComeIsWaitedForOnce) {
  Use(1, 2);
  Join(0);
  Join(1);
  rounds_->End(true);
  const size_t zero = Join(0, 1);
  Pass(seconds(60));
  EXPECT_EQ(Told(zero), "1: 0@0 / 1");
  EXPECT_EQ(Told(Join(1, 1)), "node 1: it comes for start 1 of the job, the next one is 2");
}

TEST_F(NodeRoundsTest, ARunningStartMakesRoomOnceNoMoreCome) {
  Use(1, 4);
  Join(0, -1, 2);
  Pass(seconds(30));
  const size_t two = Join(2);
  EXPECT_EQ(Told(two), "0: 0@0 / 2");
  Pass(seconds(20));
  Join(3);
  Pass(seconds(29));
  EXPECT_THAT(rounds_->TakeJoining(), IsEmpty());
  Pass(seconds(1));
  EXPECT_THAT(rounds_->TakeJoining(), ElementsAre(2, 3));
  EXPECT_THAT(rounds_->TakeJoining(), IsEmpty());
  EXPECT_EQ(rounds_->NextDeadline(), std::nullopt);
  rounds_->End(true);
  Join(2, 1);
  Join(0, 1, 2);
  EXPECT_EQ(Told(Join(3, 1)), "1: 0@0 2@2 3@3 / 4");
}

TEST_F(NodeRoundsTest, WithTheLastOneItMakesRoomAtOnce) {
  Use(1, 2);
  Join(0);
  Pass(seconds(30));
  Join(1);
  Pass(seconds(0));
  EXPECT_THAT(rounds_->TakeJoining(), ElementsAre(1));
}

TEST_F(NodeRoundsTest, ANewcomerThatLeavesAgainChangesNothing) {
  Use(1, 3);
  Join(0);
  Pass(seconds(30));
  Join(1);
  Leave(1);
  Pass(seconds(30));
  EXPECT_THAT(rounds_->TakeJoining(), IsEmpty());
}

TEST_F(NodeRoundsTest, AfterOneThatWasReleasedThereIsNoLastCall) {
  Use(2, 3);
  Join(0);
  Join(1);
  Join(2);
  EXPECT_TRUE(rounds_->Release(1));
  EXPECT_FALSE(rounds_->Release(2));  // one is too few
  rounds_->End(true);
  const size_t two = Join(2, 1);
  EXPECT_EQ(Told(two), "waits");
  Join(0, 1);  // though node 1 is still connected
  EXPECT_EQ(Told(two), "1: 0@0 2@1 / 2");
  Leave(1);
  Join(1);
  Pass(seconds(0));
  EXPECT_THAT(rounds_->TakeJoining(), ElementsAre(1));
}

absl::Status Even(int world) {
  return world % 2 == 0 ? absl::OkStatus() : InvalidArgument("{} is odd", world);
}

TEST_F(NodeRoundsTest, AsManyNodesAsDivide) {
  Use(1, 4, Even);
  const size_t zero = Join(0);
  Join(1);
  const size_t three = Join(3);
  Pass(seconds(30));
  EXPECT_EQ(Told(zero), "0: 0@0 1@1 / 2");
  EXPECT_EQ(Told(three), Told(zero));
  EXPECT_EQ((**answers_[zero])->smaller, "3 is odd");
  // With another one there are enough for it, too.
  Join(2);
  Pass(seconds(0));
  EXPECT_THAT(rounds_->TakeJoining(), ElementsAre(2, 3));
  rounds_->End(true);
  for (const int number : {0, 1, 3}) Join(number, 1);
  EXPECT_EQ(Told(Join(2, 1)), "1: 0@0 1@1 2@2 3@3 / 4");
}

TEST_F(NodeRoundsTest, OneThatWaitsTakesTheLostOnesPlaceAtOnce) {
  Use(1, 4, Even);
  Join(0);
  Join(1);
  Join(3);
  Pass(seconds(30));
  Leave(1);
  rounds_->End(true);
  const size_t three = Join(3, 1);
  Join(0, 1);
  EXPECT_EQ(Told(three), "1: 0@0 3@1 / 2");
}

TEST_F(NodeRoundsTest, ANewcomerThatDoesNotHelpWaits) {
  Use(1, 4, Even);
  Join(0);
  Join(1);
  Pass(seconds(30));
  Join(2);
  Pass(seconds(30));
  EXPECT_THAT(rounds_->TakeJoining(), IsEmpty());
  EXPECT_EQ(rounds_->NextDeadline(), std::nullopt);
}

TEST_F(NodeRoundsTest, AWorldThatCannotBeIsRefusedWithTheReason) {
  Use(3, 3, Even);
  Join(0);
  Join(1);
  const size_t two = Join(2);
  EXPECT_EQ(Told(two), "3 is odd");
  EXPECT_EQ(answers_[two]->status().code(), absl::StatusCode::kInvalidArgument);
  // Where more may come, not before the time is over.
  Use(1, 3, Even);
  const size_t one = Join(1);
  Pass(seconds(30));
  EXPECT_EQ(Told(one), "waits");
  EXPECT_EQ(rounds_->NextDeadline(), now_ + seconds(30));
  Pass(seconds(30));
  EXPECT_EQ(Told(one),
            "launchers: after 60 s nodes 0, 2 of 3 did not come; without them: 1 is odd");
}

TEST_F(NodeRoundsTest, AllRanksTogetherAreBounded) {
  Use(2, 2);
  Join(0, -1, 65536);
  EXPECT_EQ(Told(Join(1)), "65537 ranks; 1 to 65536 are allowed");
  EXPECT_EQ(Told(Join(0, -1, 0)), "node 0: 0 ranks there; 1 to 65536 are allowed");
}

TEST_F(NodeRoundsTest, StrangersAreRefusedAndDoNotDisturb) {
  Use(2, 2);
  const size_t zero = Join(0);
  EXPECT_EQ(Told(Call({.number = 1, .size = 3, .claim = 7}, -1)),
            "node 1: it says that there are 3 nodes, the job has 2");
  EXPECT_EQ(Told(Call({.number = 2, .size = 2, .claim = 7}, -1)), "node 2: nodes are 0 to 1");
  EXPECT_EQ(Told(Call({.number = -1, .size = 2, .claim = 7}, -1)), "node -1: nodes are 0 to 1");
  EXPECT_EQ(Told(Call({.number = 0, .size = 2, .claim = 7}, -1)),
            "node 0: two launchers say that they are node 0");
  EXPECT_EQ(Told(Call(Node(0), -1)), "node 0: it has come already");
  EXPECT_EQ(Told(Call(Node(1), 3)), "node 1: it comes for start 3 of the job, the next one is 0");
  EXPECT_EQ(Message(rounds_->Attend({.number = 0, .size = 2, .claim = 7})),
            "node 0: two launchers say that they are node 0");
  Run(rounds_->Leave({.number = 0, .size = 2, .claim = 7}, now_));
  Join(1);
  EXPECT_EQ(Told(zero), "0: 0@0 1@1 / 2");
}

TEST_F(NodeRoundsTest, WhatAnEarlierStartsLauncherSaysDoesNotCount) {
  Use(1, 2);
  Join(0);
  Join(1);
  const NodeRounds::Member old = Node(1);
  EXPECT_TRUE(rounds_->Admit(old, 0).ok());
  EXPECT_EQ(Message(rounds_->Admit(old, 1)), "node 1: it is of start 1 of the job; start 0 runs");
  Leave(1);
  EXPECT_EQ(Message(rounds_->Admit(old, 0)), "node 1: this launcher is not in the job");
  rounds_->End(true);
  Join(0, 1);
  Join(1);
  EXPECT_FALSE(rounds_->Admit(old, 1).ok());
  EXPECT_TRUE(rounds_->Admit(Node(1), 1).ok());
  EXPECT_EQ(Message(rounds_->Admit(Node(0), 0)),
            "node 0: it is of start 0 of the job; start 1 runs");
}

TEST_F(NodeRoundsTest, ACallThatBreaksIsTakenBack) {
  Use(2, 3);
  const size_t zero = Join(0), one = Join(1);
  Run(rounds_->Cancel(Node(1), 77, now_));  // another call of this node, refused before
  EXPECT_EQ(Told(one), "waits");
  Run(rounds_->Cancel(Node(1), one, now_));
  EXPECT_EQ(answers_[one]->status().code(), absl::StatusCode::kCancelled);
  Pass(seconds(30));
  EXPECT_EQ(Told(zero), "waits");
  Leave(1);
  Join(1);
  Pass(seconds(30));
  EXPECT_EQ(Told(zero), "0: 0@0 1@1 / 2");
}

TEST_F(NodeRoundsTest, AfterTheEndNobodyIsKeptWaiting) {
  Use(1, 2);
  Join(0);
  Join(1);
  rounds_->End(false);
  EXPECT_EQ(Told(Join(0, 1)), "node 0: the job is over");
  Use(2, 2);
  const size_t zero = Join(0);
  Run(rounds_->Close(Unavailable("closed")));
  EXPECT_EQ(Told(zero), "closed");
}

TEST(NodeRange, IsRead) {
  const auto read = [](const std::string& text) {
    const auto range = ParseNodeRange("--nnodes", text);
    return range.ok() ? fmt::format("{} to {}", range->min, range->max) : Message(range.status());
  };
  EXPECT_EQ(read("3"), "3 to 3");
  EXPECT_EQ(read("1:4"), "1 to 4");
  EXPECT_EQ(read("65536:65536"), "65536 to 65536");
  EXPECT_EQ(read("4:1"), "--nnodes 4:1: MIN is more than MAX");
  for (const char* wrong : {"", "0", "-1", "two", "1:", ":4", "1:2:3", "1: 4", "0:4", "65537",
                            "2147483648", "99999999999999999999", "1:2147483648", "1.5"}) {
    EXPECT_EQ(read(wrong), fmt::format("--nnodes {}: N or MIN:MAX, each 1 to 65536", wrong));
  }
}

}  // namespace
}  // namespace cadre
