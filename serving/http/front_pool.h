// A fixed number of threads with a bounded queue, for the front's work on text: parsing, templates,
// tokenizing. Nothing here waits: a full queue refuses.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace cadre {

class FrontPool {
 public:
  FrontPool(int num_threads, size_t max_queued);
  // Runs what has started to its end and drops what has not.
  ~FrontPool();
  FrontPool(const FrontPool&) = delete;
  FrontPool& operator=(const FrontPool&) = delete;

  // False when the queue is full or the pool stops. Any thread.
  bool TryPost(std::function<void()> work);

 private:
  void Run();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace cadre
