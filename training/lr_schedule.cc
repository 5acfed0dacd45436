#include "training/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "proto/train_config.pb.h"

namespace cadre {
namespace {

double Cosine(double progress) { return 0.5 * (1.0 + std::cos(std::numbers::pi * progress)); }
double Linear(double progress) { return 1.0 - progress; }
double Constant(double) { return 1.0; }

// Where a schedule decays, in updates done.
struct Window {
  int64_t begin;
  int64_t end;
};

Window FromWarmup(const config::LrScheduleConfig& c, int64_t train_steps) {
  return {c.warmup_steps(), c.has_decay_steps() ? c.decay_steps() : train_steps};
}

Window AtTheEnd(const config::LrScheduleConfig& c, int64_t train_steps) {
  int64_t length = c.has_decay_steps() ? c.decay_steps() : std::max<int64_t>(1, train_steps / 10);
  return {train_steps - length, train_steps};
}

Window Never(const config::LrScheduleConfig& c, int64_t train_steps) {
  return {c.warmup_steps(), std::max<int64_t>(c.warmup_steps(), train_steps) + 1};
}

struct Row {
  config::Schedule kind;
  double (*curve)(double);
  Window (*window)(const config::LrScheduleConfig&, int64_t);
};

constexpr Row kSchedules[] = {
    {config::SCHEDULE_COSINE, Cosine, FromWarmup},
    {config::SCHEDULE_WSD, Linear, AtTheEnd},
    {config::SCHEDULE_LINEAR, Linear, FromWarmup},
    {config::SCHEDULE_CONSTANT, Constant, Never},
};

}  // namespace

absl::StatusOr<LrSchedule> LrSchedule::Create(const config::LrScheduleConfig& schedule,
                                              double peak_lr, int64_t train_steps) {
  for (const Row& row : kSchedules) {
    if (row.kind != schedule.kind()) continue;
    Window window = row.window(schedule, train_steps);
    if (window.begin < schedule.warmup_steps()) {
      return InvalidArgument(
          "lr_schedule: warmup_steps {} and a decay of {} steps do not fit train_steps {}",
          schedule.warmup_steps(), window.end - window.begin, train_steps);
    }
    if (window.end < window.begin) {
      return InvalidArgument(
          "lr_schedule.warmup_steps: {} is past the end of the decay at step {} (decay_steps, or "
          "train_steps where it is absent)",
          schedule.warmup_steps(), window.end);
    }
    LrSchedule result;
    result.curve_ = row.curve;
    result.peak_ = peak_lr;
    result.minimum_ = peak_lr * schedule.min_lr_ratio();
    result.warmup_ = schedule.warmup_steps();
    result.decay_begin_ = window.begin;
    result.decay_end_ = window.end;
    return result;
  }
  return InvalidArgument("lr_schedule.kind: {} is unknown", static_cast<int>(schedule.kind()));
}

double LrSchedule::At(int64_t step) const {
  int64_t update = step + 1;
  if (update < warmup_) {
    return peak_ * static_cast<double>(update) / static_cast<double>(warmup_);
  }
  if (update <= decay_begin_) return peak_;
  double share = 0.0;
  if (update < decay_end_ || curve_ == Constant) {
    share = curve_(static_cast<double>(update - decay_begin_) /
                   static_cast<double>(decay_end_ - decay_begin_));
  }
  return minimum_ + (peak_ - minimum_) * share;
}

}  // namespace cadre
