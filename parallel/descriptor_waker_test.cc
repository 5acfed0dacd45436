#include "parallel/descriptor_waker.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>

namespace cadre {
namespace {

class DescriptorWakerTest : public testing::Test {
 protected:
  void SetUp() override {
    auto waker = DescriptorWaker::Create(event_, [this] {
      std::lock_guard lock(mutex_);
      ++calls_;
      called_.notify_all();
    });
    ASSERT_TRUE(waker.ok()) << waker.status();
    waker_ = *std::move(waker);
  }
  void TearDown() override {
    waker_.reset();
    close(event_);
  }

  void MakeReadable() {
    const uint64_t one = 1;
    ASSERT_EQ(write(event_, &one, sizeof(one)), static_cast<ssize_t>(sizeof(one)));
  }
  void WaitForCalls(int calls) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(called_.wait_for(lock, std::chrono::seconds(60), [&] { return calls_ >= calls; }));
    EXPECT_EQ(calls_, calls) << "one call for each Arm";
  }

  const int event_ = eventfd(0, 0);
  std::mutex mutex_;
  std::condition_variable called_;
  int calls_ = 0;
  std::unique_ptr<DescriptorWaker> waker_;
};

TEST_F(DescriptorWakerTest, CallsOncePerArm) {
  MakeReadable();
  for (int i = 1; i < 100; ++i) {
    waker_->Arm(true);
    WaitForCalls(i);
  }
}

TEST_F(DescriptorWakerTest, CallsWhenItBecomesReadable) {
  waker_->Arm(true);
  MakeReadable();
  WaitForCalls(1);
}

TEST_F(DescriptorWakerTest, KeepsCallsInVainApart) {
  MakeReadable();
  const auto began = std::chrono::steady_clock::now();
  const int slow = 10;
  for (int i = 1; i <= DescriptorWaker::kPatience + slow; ++i) {
    waker_->Arm(false);
    WaitForCalls(i);
  }
  EXPECT_GE(std::chrono::steady_clock::now() - began, slow * DescriptorWaker::kDelay);
}

TEST_F(DescriptorWakerTest, EndsWhileArmed) {
  waker_->Arm(true);
  waker_.reset();
  EXPECT_EQ(calls_, 0);
}

}  // namespace
}  // namespace cadre
