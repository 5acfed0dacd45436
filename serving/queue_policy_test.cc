#include "serving/queue_policy.h"

#include <gtest/gtest.h>

#include <map>

#include "serving/fair_share.h"
#include "serving/scheduler_fixture.h"

namespace cadre {
namespace {

SchedulerOptions OneAtATime(SchedulingPolicy policy) {
  return {.max_num_seqs = 1,
          .max_num_batched_tokens = 64,
          .max_context = 200,
          .queue = {.policy = policy, .prompt_weight = 1, .generated_weight = 2}};
}

// The order in which all end.
std::vector<uint64_t> Drain(SchedulerRig& rig) {
  while (rig.scheduler().running() + rig.scheduler().waiting() > 0) rig.StepAndEnd();
  return rig.ended();
}

TEST(QueuePolicy, FcfsKnowsNoPriorities) {
  SchedulerRig rig(64, OneAtATime(SchedulingPolicy::kFcfs));
  rig.Add({.id = 1, .priority = 9});
  rig.Add({.id = 2, .priority = 0});
  rig.Add({.id = 3, .priority = -9});
  EXPECT_EQ(Drain(rig), (std::vector<uint64_t>{1, 2, 3}));
}

TEST(QueuePolicy, TheLowestPriorityNumberComesFirstThenAsTheyCame) {
  SchedulerRig rig(64, OneAtATime(SchedulingPolicy::kPriority));
  rig.Add({.id = 1, .priority = 1});
  rig.Add({.id = 2, .priority = 0});
  rig.Add({.id = 3, .priority = -1});
  rig.Add({.id = 4, .priority = 0});
  EXPECT_EQ(Drain(rig), (std::vector<uint64_t>{3, 2, 4, 1}));
}

TEST(QueuePolicy, FairTakesTurnsWhoeverAskedMore) {
  SchedulerRig rig(64, OneAtATime(SchedulingPolicy::kFair));
  for (uint64_t id = 1; id <= 4; ++id) rig.Add({.id = id, .tenant = "greedy"});
  rig.Add({.id = 5, .tenant = "modest"});
  rig.Add({.id = 6, .tenant = "modest"});
  EXPECT_EQ(Drain(rig), (std::vector<uint64_t>{1, 5, 2, 6, 3, 4}));
}

TEST(QueuePolicy, FairPrioritiesAreTheKeysOwnAffair) {
  SchedulerRig rig(64, OneAtATime(SchedulingPolicy::kFair));
  rig.Add({.id = 1, .priority = 5, .tenant = "a"});
  rig.Add({.id = 2, .priority = -100, .tenant = "b"});
  rig.Add({.id = 3, .priority = -100, .tenant = "b"});
  rig.Add({.id = 4, .priority = 1, .tenant = "a"});
  EXPECT_EQ(Drain(rig), (std::vector<uint64_t>{4, 2, 1, 3}));
}

// Two keys that always have work, one with long prompts, one with long answers: what each is served
// never differs by more than two of the largest requests cost.
TEST(QueuePolicy, FairServesBackloggedKeysAlike) {
  SchedulerRig rig(400, {.max_num_seqs = 4,
                         .max_num_batched_tokens = 64,
                         .max_context = 200,
                         .queue = {.policy = SchedulingPolicy::kFair}});
  struct Kind {
    int64_t prompt;
    int max_tokens;
  };
  const std::map<std::string, Kind> kinds = {{"prompts", {120, 4}}, {"answers", {8, 60}}};
  std::map<std::string, double> served;
  std::map<uint64_t, std::string> tenant;
  uint64_t id = 0;
  for (int round = 0; round < 60; ++round) {
    for (const auto& [name, kind] : kinds) {
      tenant[++id] = name;
      rig.Add({.id = id, .prompt = kind.prompt, .max_tokens = kind.max_tokens, .tenant = name});
    }
  }
  for (int step = 0; step < 400; ++step) {
    for (const auto& [ran, tokens] : rig.StepAndEnd()) {
      const Kind kind = kinds.at(tenant[ran]);
      served[tenant[ran]] += tokens > 1 ? static_cast<double>(tokens) : 2;
      ASSERT_LE(std::abs(served["prompts"] - served["answers"]), 2 * 4 * (kind.prompt + 2 * 60))
          << "step " << step;
    }
  }
  EXPECT_GT(rig.scheduler().waiting(), 0);
  EXPECT_NEAR(served["prompts"] / served["answers"], 1, 0.15);
}

TEST(FairShare, IdleTimeIsNoCredit) {
  FairShare share;
  share.Queued("busy");
  share.Charge("busy", 1000);
  share.Queued("late");  // while busy waits
  EXPECT_EQ(share.served("late"), 1000);
  share.Charge("late", 10);
  share.Left("late");
  share.Left("busy");
  share.Queued("new");  // nobody waits: the last that left says how far the others are
  EXPECT_EQ(share.served("new"), 1000);
  share.Left("new");
  share.Charge("new", 5000);
  share.Queued("late");  // its own counter is never lowered, and lifted to the last one's
  EXPECT_EQ(share.served("late"), 6000);
}

TEST(FairShare, WhoWaitsAlreadyIsNotLifted) {
  FairShare share;
  share.Queued("a");
  share.Queued("b");
  share.Charge("b", 100);
  share.Queued("a");
  EXPECT_EQ(share.served("a"), 0);
}

}  // namespace
}  // namespace cadre
