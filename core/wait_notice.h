// WaitNotice: says something once it took a while, so that nobody looks at a silent program.
//
//   const WaitNotice notice(std::chrono::seconds(10), [&] { log.info("waits for the others"); });
//   Connect();   // `say` is called once, on another thread, if it takes longer than that
//
// Made and destroyed by one thread; after its destruction `say` is not running and never will be.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <stop_token>
#include <thread>

namespace cadre {

class WaitNotice {
 public:
  WaitNotice(std::chrono::milliseconds patience, std::function<void()> say);

 private:
  std::mutex mutex_;
  std::condition_variable_any woken_;
  std::jthread thread_;  // last: it ends before what it uses
};

}  // namespace cadre
