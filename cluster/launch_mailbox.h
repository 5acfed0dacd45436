// What other threads tell a LaunchRun. Whoever may still post holds a share of it: a call to the
// rendezvous can end after the run that made it. Private to this folder. Any thread.
#pragma once

#include <deque>
#include <mutex>
#include <optional>

#include "cluster/hang_watchdog.h"
#include "proto/rendezvous.pb.h"

namespace cadre {

class LaunchMailbox {
 public:
  struct Mail {
    std::optional<rendezvous::Event> event;
    std::optional<HangReport> hang;
    bool expired = false;
  };

  LaunchMailbox();
  ~LaunchMailbox();
  LaunchMailbox(const LaunchMailbox&) = delete;
  LaunchMailbox& operator=(const LaunchMailbox&) = delete;

  void Post(Mail mail);
  // All that has come, in order.
  std::deque<Mail> Take();
  // A descriptor that can be read when something has.
  int bell() const { return bell_; }

 private:
  const int bell_;  // an eventfd
  std::mutex mutex_;
  std::deque<Mail> mail_;  // under mutex_
};

}  // namespace cadre
