// HangWatchdog: a thread that looks at the flight records of a node's ranks and says when nothing
// moves, and who is to blame (cluster/hang_report.h).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cluster/hang_report.h"

namespace cadre {

struct HangWatchdogOptions {
  struct Rank {
    int rank = 0;
    pid_t pid = 0;
    std::string record;  // file
  };
  std::vector<Rank> ranks;
  HangOptions hang;
  std::chrono::nanoseconds expires_after{0};  // 0: never
  std::chrono::milliseconds interval{200};
};

class HangWatchdog {
 public:
  // Called from the thread, once when a hang is seen and once more, with `expired`, when it has
  // lasted for expires_after.
  using OnHang = std::function<void(const HangReport& report, bool expired)>;

  HangWatchdog(HangWatchdogOptions options, OnHang on_hang);
  // Another node says that its ranks wait, and in what.
  void OthersWait(const std::string& text);

 private:
  void Watch(const std::stop_token& stop);
  std::vector<RankView> Look() const;

  const HangWatchdogOptions options_;
  const OnHang on_hang_;
  std::mutex mutex_;
  std::condition_variable_any wake_;
  HangOptions hang_;     // under mutex_
  std::jthread thread_;  // last: it uses the others
};

}  // namespace cadre
