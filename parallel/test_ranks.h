// Ranks as threads, for tests: RunRanks(4, [](World& world) { ... }).
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "parallel/world.h"

namespace cadre {

// What the threads of a test share.
class ThreadRendezvous {
 public:
  explicit ThreadRendezvous(int size) : size_(size) {}

  std::vector<std::string> AllGather(const std::string& key, int rank, std::string mine) {
    std::unique_lock lock(mutex_);
    Round& round = rounds_[key];
    round.values.resize(static_cast<size_t>(size_));
    round.values[static_cast<size_t>(rank)] = std::move(mine);
    if (++round.came == size_) changed_.notify_all();
    changed_.wait(lock, [&] { return round.came == size_; });
    return round.values;
  }

 private:
  struct Round {
    std::vector<std::string> values;
    int came = 0;
  };
  const int size_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Round> rounds_;
};

class ThreadBootstrap : public Bootstrap {
 public:
  ThreadBootstrap(ThreadRendezvous& rendezvous, int rank, int size)
      : rendezvous_(rendezvous), rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::StatusOr<std::vector<std::string>> AllGather(std::string_view key,
                                                     std::string mine) override {
    return rendezvous_.AllGather(std::string(key), rank_, std::move(mine));
  }

 private:
  ThreadRendezvous& rendezvous_;
  const int rank_, size_;
};

inline void RunRanks(int size, const std::function<void(World&)>& body,
                     const WorldOptions& options = {}) {
  ThreadRendezvous rendezvous(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadBootstrap bootstrap(rendezvous, rank, size);
      auto world = World::Create(bootstrap, options);
      ASSERT_TRUE(world.ok()) << Message(world.status());
      body(**world);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace cadre
