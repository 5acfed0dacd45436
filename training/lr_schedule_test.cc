#include "training/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "proto/train_config.pb.h"

namespace cadre {
namespace {

config::LrScheduleConfig Config(config::Schedule kind, int64_t warmup, double min_ratio) {
  config::LrScheduleConfig config;
  config.set_kind(kind);
  config.set_warmup_steps(warmup);
  config.set_min_lr_ratio(min_ratio);
  return config;
}

LrSchedule Make(const config::LrScheduleConfig& config, int64_t train_steps) {
  auto schedule = LrSchedule::Create(config, 1.0, train_steps);
  CADRE_CHECK(schedule.ok(), "{}", Message(schedule.status()));
  return *schedule;
}

TEST(LrSchedule, WarmsUpLinearlyInEverySchedule) {
  for (auto kind : {config::SCHEDULE_COSINE, config::SCHEDULE_WSD, config::SCHEDULE_LINEAR,
                    config::SCHEDULE_CONSTANT}) {
    LrSchedule schedule = Make(Config(kind, 10, 0.1), 100);
    for (int64_t step = 0; step < 10; ++step) {
      EXPECT_DOUBLE_EQ(schedule.At(step), (step + 1) / 10.0) << kind << " step " << step;
    }
  }
}

TEST(LrSchedule, CosineFollowsItsFormulaAndEndsAtTheMinimum) {
  LrSchedule schedule = Make(Config(config::SCHEDULE_COSINE, 10, 0.1), 110);
  for (int64_t step = 10; step < 110; ++step) {
    double progress = (step + 1 - 10) / 100.0;
    EXPECT_NEAR(schedule.At(step), 0.1 + 0.45 * (1 + std::cos(std::numbers::pi * progress)), 1e-15);
  }
  EXPECT_DOUBLE_EQ(schedule.At(109), 0.1);
  EXPECT_DOUBLE_EQ(schedule.At(1000), 0.1);
}

TEST(LrSchedule, LinearReachesTheMinimumAtDecaySteps) {
  auto config = Config(config::SCHEDULE_LINEAR, 0, 0.0);
  config.set_decay_steps(50);
  LrSchedule schedule = Make(config, 100);
  EXPECT_DOUBLE_EQ(schedule.At(0), 1.0 - 1.0 / 50);
  EXPECT_DOUBLE_EQ(schedule.At(24), 0.5);
  EXPECT_DOUBLE_EQ(schedule.At(49), 0.0);
  EXPECT_DOUBLE_EQ(schedule.At(99), 0.0);
}

TEST(LrSchedule, WsdIsConstantUntilItsDecay) {
  auto config = Config(config::SCHEDULE_WSD, 10, 0.2);
  config.set_decay_steps(20);
  LrSchedule schedule = Make(config, 100);
  for (int64_t step = 10; step < 80; ++step) EXPECT_DOUBLE_EQ(schedule.At(step), 1.0) << step;
  EXPECT_NEAR(schedule.At(89), 0.6, 1e-12);
  EXPECT_DOUBLE_EQ(schedule.At(99), 0.2);
  // A tenth of the run where decay_steps is absent.
  LrSchedule tenth = Make(Config(config::SCHEDULE_WSD, 10, 0.0), 100);
  EXPECT_DOUBLE_EQ(tenth.At(89), 1.0);
  EXPECT_NEAR(tenth.At(94), 0.5, 1e-12);
}

TEST(LrSchedule, ConstantStays) {
  LrSchedule schedule = Make(Config(config::SCHEDULE_CONSTANT, 0, 0.1), 10);
  for (int64_t step : {0, 5, 9, 10, 10000}) EXPECT_DOUBLE_EQ(schedule.At(step), 1.0) << step;
}

TEST(LrSchedule, RefusesWhatDoesNotFit) {
  auto late = LrSchedule::Create(Config(config::SCHEDULE_COSINE, 100, 0), 1.0, 50);
  EXPECT_EQ(late.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(Message(late.status()).find("warmup_steps"), std::string::npos);
  auto config = Config(config::SCHEDULE_WSD, 60, 0);
  config.set_decay_steps(50);
  EXPECT_FALSE(LrSchedule::Create(config, 1.0, 100).ok());
}

}  // namespace
}  // namespace cadre
