#include "training/step_guard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include <nlohmann/json.hpp>

namespace cadre {
namespace {

using Action = StepVerdict::Action;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

config::BadStepConfig Config(config::BadStepAction non_finite, config::BadStepAction spike) {
  config::BadStepConfig config;
  config.set_on_non_finite(non_finite);
  config.set_on_spike(spike);
  config.set_spike_factor(4);
  config.set_spike_window(16);
  config.set_max_consecutive(3);
  return config;
}

TEST(StepGuard, SkipsNonFiniteStepsAndStopsAfterTooMany) {
  StepGuard guard(Config(config::BAD_STEP_ACTION_SKIP, config::BAD_STEP_ACTION_KEEP));
  EXPECT_EQ(guard.Judge(0, 2.0, 1.0).action, Action::kApply);
  EXPECT_EQ(guard.Judge(1, kNaN, 1.0).action, Action::kSkip);
  EXPECT_EQ(guard.Judge(2, 2.0, kInfinity).action, Action::kSkip);
  EXPECT_EQ(guard.Judge(3, 2.0, 1.0).action, Action::kApply);
  EXPECT_EQ(guard.Judge(4, kNaN, kNaN).action, Action::kSkip);
  EXPECT_EQ(guard.Judge(5, kNaN, kNaN).action, Action::kSkip);
  StepVerdict last = guard.Judge(6, kNaN, kNaN);
  EXPECT_EQ(last.action, Action::kStop);
  EXPECT_NE(last.reason.find("max_consecutive"), std::string::npos) << last.reason;
}

TEST(StepGuard, NeverAppliesANonFiniteStep) {
  StepGuard guard(Config(config::BAD_STEP_ACTION_KEEP, config::BAD_STEP_ACTION_KEEP));
  EXPECT_EQ(guard.Judge(0, kNaN, 1.0).action, Action::kSkip);
  StepGuard stopping(Config(config::BAD_STEP_ACTION_STOP, config::BAD_STEP_ACTION_KEEP));
  EXPECT_EQ(stopping.Judge(0, 1.0, kNaN).action, Action::kStop);
}

TEST(StepGuard, SpikesAreMeasuredAgainstTheMedian) {
  StepGuard guard(Config(config::BAD_STEP_ACTION_SKIP, config::BAD_STEP_ACTION_SKIP));
  // Too short a history to call anything a spike.
  EXPECT_FALSE(guard.Judge(0, 1.0, 1.0).bad);
  EXPECT_FALSE(guard.Judge(1, 1.0, 100.0).bad);
  for (int step = 2; step < 20; ++step) EXPECT_FALSE(guard.Judge(step, 1.0, 1.0).bad);
  EXPECT_FALSE(guard.Judge(20, 1.0, 3.9).bad);
  StepVerdict spike = guard.Judge(21, 1.0, 4.1);
  EXPECT_TRUE(spike.bad);
  EXPECT_EQ(spike.action, Action::kSkip);
  EXPECT_NE(spike.reason.find("step 21"), std::string::npos) << spike.reason;
  StepGuard keeping(Config(config::BAD_STEP_ACTION_SKIP, config::BAD_STEP_ACTION_KEEP));
  keeping.Restore(guard.state());
  StepVerdict kept = keeping.Judge(22, 1.0, 50.0);
  EXPECT_TRUE(kept.bad);
  EXPECT_EQ(kept.action, Action::kApply);
}

TEST(StepGuard, ARestoredGuardDecidesAlike) {
  config::BadStepConfig config = Config(config::BAD_STEP_ACTION_SKIP, config::BAD_STEP_ACTION_SKIP);
  StepGuard whole(config), first(config), second(config);
  auto norm = [](int step) { return step % 17 == 16 ? kNaN : 1.0 + (step * 7919 % 100) * 0.1; };
  for (int step = 0; step < 50; ++step) {
    whole.Judge(step, 1.0, norm(step));
    first.Judge(step, 1.0, norm(step));
  }
  second.Restore(first.state());
  for (int step = 50; step < 120; ++step) {
    StepVerdict a = whole.Judge(step, 1.0, norm(step)), b = second.Judge(step, 1.0, norm(step));
    EXPECT_EQ(a.action, b.action) << step;
    EXPECT_EQ(a.reason, b.reason);
  }
}

TEST(StepGuard, DumpsTheBatch) {
  std::string folder = testing::TempDir() + "/cadre_bad_steps/nested";
  std::filesystem::remove_all(folder);
  auto path = WriteBadStep(folder, {.step = 7,
                                    .loss = kNaN,
                                    .gradient_norm = 3.5,
                                    .reason = "why",
                                    .samples = {14, 15},
                                    .ids = {{1, 2}, {3, 4}},
                                    .targets = {{2, -1}, {4, 5}}});
  ASSERT_TRUE(path.ok()) << Message(path.status());
  EXPECT_TRUE(path->ends_with("step-000007.json"));
  std::ifstream stream(*path);
  nlohmann::json json = nlohmann::json::parse(stream);
  EXPECT_EQ(json["loss"], "nan");
  EXPECT_EQ(json["grad_norm"], 3.5);
  EXPECT_EQ(json["samples"], (std::vector<int64_t>{14, 15}));
  EXPECT_EQ(json["ids"][1], (std::vector<int32_t>{3, 4}));
  EXPECT_EQ(json["targets"][0], (std::vector<int32_t>{2, -1}));
  EXPECT_FALSE(WriteBadStep("/proc/nowhere", {}).ok());
}

}  // namespace
}  // namespace cadre
