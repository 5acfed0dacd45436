// The learning rate of a step: a pure function of the configuration and the step, so a resumed run
// needs no state. Linear warm-up, then one of the curves in the table of lr_schedule.cc.
//
// Steps count from 0. The first update already moves the weights: step s takes
// lr × (s + 1) / warmup_steps while it warms up, so the peak is reached by step warmup_steps − 1,
// and the last step of the decay takes exactly lr × min_lr_ratio.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace cadre {

namespace config {
class LrScheduleConfig;
}

class LrSchedule {
 public:
  // kInvalidArgument: the warm-up leaves no room for the decay, or the decay is longer than the
  // run; the message names the fields.
  static absl::StatusOr<LrSchedule> Create(const config::LrScheduleConfig& schedule, double peak_lr,
                                           int64_t train_steps);

  // Callable from any thread. Past the end of the decay it stays at the minimum.
  double At(int64_t step) const;

 private:
  // Share of the way from the peak (1) to the minimum (0) at `progress` in [0, 1].
  using Curve = double (*)(double progress);

  LrSchedule() = default;

  Curve curve_ = nullptr;
  double peak_ = 0;
  double minimum_ = 0;
  int64_t warmup_ = 0;
  int64_t decay_begin_ = 0;  // updates done before the decay starts
  int64_t decay_end_ = 0;
};

}  // namespace cadre
