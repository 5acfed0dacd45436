#include "cluster/gathering.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cadre {
namespace {

using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GatheringTest : public testing::Test {
 protected:
  using Outcome = absl::StatusOr<Gathering::Values>;

  // The caller's place in outcomes_ gets what is answered.
  void Add(int number, const std::string& key = "world", std::string value = "v",
           uint64_t claim = 0) {
    Add({.generation = 2, .number = number, .size = 3, .claim = claim ? claim : 100 + number}, key,
        std::move(value));
  }
  void Add(Gathering::Member member, const std::string& key = "world", std::string value = "v") {
    const size_t place = outcomes_.size();
    outcomes_.emplace_back();
    Run(gathering_.Add(
        {.member = member,
         .key = key,
         .value = std::move(value),
         .timeout = seconds(60),
         .ticket = place,
         .answer = [this, place](const Outcome& outcome) { outcomes_[place] = outcome; }},
        now_));
  }
  static void Run(const Gathering::Due& due) {
    for (const auto& answer : due) answer();
  }
  std::string Error(size_t place) const {
    return outcomes_[place] && !outcomes_[place]->ok() ? Message(outcomes_[place]->status()) : "";
  }

  Gathering gathering_{"rank", 2, 3};
  Gathering::Clock::time_point now_{};
  std::vector<std::optional<Outcome>> outcomes_;
};

TEST_F(GatheringTest, AllGetAllValuesInOrder) {
  Add(2, "a", "two");
  Add(0, "a", "zero");
  Add(0, "b", "other");  // another key does not mix with it
  EXPECT_FALSE(outcomes_[0] || outcomes_[1]);
  Add(1, "a", "one");
  for (const size_t place : {0, 1, 3}) {
    ASSERT_TRUE(outcomes_[place] && outcomes_[place]->ok());
    EXPECT_THAT(***outcomes_[place], ElementsAre("zero", "one", "two"));
  }
  EXPECT_FALSE(outcomes_[2]);
}

TEST_F(GatheringTest, ATimeOutNamesWhoIsMissing) {
  Add(1);
  EXPECT_EQ(gathering_.NextDeadline(), now_ + seconds(60));
  Run(gathering_.Expire(now_ + seconds(59)));
  EXPECT_FALSE(outcomes_[0]);
  Run(gathering_.Expire(now_ + seconds(60)));
  EXPECT_EQ(Error(0), "world: after 60 s ranks 0, 2 of 3 did not come");
  EXPECT_EQ(outcomes_[0]->status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_FALSE(gathering_.NextDeadline());
  Add(2);  // too late: told at once
  EXPECT_EQ(Error(1), "world: after 60 s ranks 0, 2 of 3 did not come");
}

TEST_F(GatheringTest, StrangersAreRefusedAndDoNotDisturb) {
  Add(0);
  Add({.generation = 1, .number = 1, .size = 3, .claim = 7});
  Add({.generation = 2, .number = 1, .size = 4, .claim = 7});
  Add({.generation = 2, .number = 3, .size = 3, .claim = 7});
  Add({.generation = 2, .number = -1, .size = 3, .claim = 7});
  Add(0, "world", "v", 99);
  Add(0);
  EXPECT_EQ(Error(1), "rank 1: it is of start 1 of the job; start 2 runs");
  EXPECT_EQ(Error(2), "rank 1: it says that there are 4 ranks, the job has 3");
  EXPECT_EQ(Error(3), "rank 3: ranks are 0 to 2");
  EXPECT_EQ(Error(4), "rank -1: ranks are 0 to 2");
  EXPECT_EQ(Error(5), "rank 0: two processes say that they are rank 0");
  EXPECT_EQ(Error(6), "rank 0: world: it has come already");
  Add(1);
  Add(2);
  EXPECT_TRUE(outcomes_[0] && outcomes_[0]->ok());
}

TEST_F(GatheringTest, OneThatLeavesEndsTheWait) {
  Add(0);
  Add(1);
  Run(gathering_.Leave("world", 2, 2));  // never came
  Run(gathering_.Leave("other", 0, 0));
  Run(gathering_.Leave("world", 0, 9));  // another call of this rank, refused before
  EXPECT_FALSE(outcomes_[0] || outcomes_[1]);
  Run(gathering_.Leave("world", 0, 0));
  EXPECT_TRUE(outcomes_[0]);  // its call has to end, too
  EXPECT_EQ(Error(1), "world: rank 0 left while it waited for the others");
  EXPECT_EQ(outcomes_[1]->status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(GatheringTest, ClosingEndsAll) {
  Add(0, "a");
  Add(1, "b");
  Run(gathering_.Close(Unavailable("over")));
  EXPECT_EQ(Error(0), "over");
  EXPECT_EQ(Error(1), "over");
}

TEST_F(GatheringTest, BoundsHold) {
  Add(0, "");
  Add(0, std::string(Gathering::kMaxKeyBytes + 1, 'k'));
  Add(0, "k", std::string(Gathering::kMaxValueBytes + 1, 'v'));
  EXPECT_EQ(Error(0), "rank 0: a key of 0 bytes; 1 to 128 are allowed");
  EXPECT_THAT(Error(1), HasSubstr("a key of 129 bytes"));
  Add(0, "\x1b[2J");
  EXPECT_EQ(Error(3), "rank 0: a key that is not printable ASCII");
  EXPECT_THAT(Error(2), HasSubstr("a value of 1048577 bytes; 1048576 are allowed"));
  for (size_t i = 0; i < Gathering::kMaxOpenKeys; ++i) Add(0, std::to_string(i));
  Add(0, "one more");
  EXPECT_THAT(Error(outcomes_.size() - 1), HasSubstr("64 keys are open already"));
}

TEST(Gathering, ValuesTogetherAreBounded) {
  Gathering gathering("rank", 0, 100);
  std::optional<absl::Status> refused;
  int number = 0;
  for (; number < 100 && !refused; ++number) {
    const auto due =
        gathering.Add({.member = {.number = number, .size = 100},
                       .key = "k",
                       .value = std::string(Gathering::kMaxValueBytes, 'v'),
                       .timeout = seconds(1),
                       .answer = [&](const auto& outcome) { refused = outcome.status(); }},
                      {});
    for (const auto& answer : due) answer();
  }
  ASSERT_TRUE(refused);
  EXPECT_EQ(number, 65);
  EXPECT_THAT(Message(*refused), HasSubstr("all values together pass 67108864 bytes"));
}

}  // namespace
}  // namespace cadre
