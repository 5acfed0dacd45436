// DescriptorWaker: a thread that sleeps on a descriptor and calls back once it is readable, once
// per Arm: a descriptor that stays readable until somebody comes to read it calls nobody again.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include "core/status.h"

namespace cadre {

class DescriptorWaker {
 public:
  // After as many calls in a row of which nothing came, the next ones come this much later.
  static constexpr int kPatience = 16;
  static constexpr std::chrono::milliseconds kDelay{5};

  // Disarmed. `descriptor` is borrowed and must outlive it; kInternal: the system has no more
  // descriptors. `ring` is called on the waker's thread.
  static absl::StatusOr<std::unique_ptr<DescriptorWaker>> Create(int descriptor,
                                                                 std::function<void()> ring);
  // Waits for a call of `ring` that is under way.
  ~DescriptorWaker();
  DescriptorWaker(const DescriptorWaker&) = delete;
  DescriptorWaker& operator=(const DescriptorWaker&) = delete;

  // One thread. Calls back also where the descriptor is readable already. `came`: something came of
  // a call since the last Arm.
  void Arm(bool came);

 private:
  DescriptorWaker(int descriptor, std::function<void()> ring);
  void Run();
  void Watch();

  const int descriptor_;
  const std::function<void()> ring_;
  int epoll_ = -1;
  int stop_ = -1;
  int timer_ = -1;
  int in_vain_ = 0;
  std::atomic<bool> called_ = false;
  std::thread thread_;
};

}  // namespace cadre
