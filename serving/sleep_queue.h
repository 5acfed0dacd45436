// SleepQueue: what was asked of an engine's sleep and how deep it sleeps. The engine's mutex guards
// all of it; the engine's thread takes the commands and carries them out (serving/engine_sleep.cc).
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"

namespace cadre {

using SleepDone = std::function<void(absl::Status)>;
using WakeDone = std::function<void(absl::StatusOr<int64_t>)>;

// To be carried out in this order.
struct SleepCommands {
  std::vector<SleepDone> aborted;
  std::vector<WakeDone> wakes;
  std::vector<std::pair<int, SleepDone>> sleeps;  // levels

  bool empty() const { return aborted.empty() && wakes.empty() && sleeps.empty(); }
};

class SleepQueue {
 public:
  void AskSleep(int level, SleepDone done) { asked_.sleeps.emplace_back(level, std::move(done)); }
  // Sleeps that were asked for before it are aborted.
  void AskWake(WakeDone done) {
    for (auto& [level, sleeper] : asked_.sleeps) asked_.aborted.push_back(std::move(sleeper));
    asked_.sleeps.clear();
    asked_.wakes.push_back(std::move(done));
  }

  // Sleeps wait until nothing is left to do.
  bool HasWork(bool nothing_left) const {
    return !asked_.aborted.empty() || !asked_.wakes.empty() ||
           (nothing_left && !asked_.sleeps.empty());
  }
  // The engine's thread; what it takes lasts until Settle.
  SleepCommands Take(bool nothing_left) {
    SleepCommands taken{std::exchange(asked_.aborted, {}), std::exchange(asked_.wakes, {}), {}};
    if (nothing_left) taken.sleeps = std::exchange(asked_.sleeps, {});
    changing_ = !taken.sleeps.empty();
    return taken;
  }
  // How deep it sleeps now, 0: not at all; `failure`: why it could not wake.
  void Settle(int level, std::string failure) {
    level_ = level;
    failure_ = std::move(failure);
    changing_ = false;
  }

  // Why requests are refused, in a few words; empty where they are not.
  std::string State() const {
    if (level_ > 0) {
      return fmt::format("asleep at level {}{}", level_, failure_.empty() ? "" : ", waking failed");
    }
    return changing_ || !asked_.sleeps.empty() ? "falling asleep" : "";
  }
  int level() const { return level_; }
  // Why it could not wake.
  const std::string& failure() const { return failure_; }

 private:
  SleepCommands asked_;
  int level_ = 0;
  bool changing_ = false;
  std::string failure_;
};

}  // namespace cadre
