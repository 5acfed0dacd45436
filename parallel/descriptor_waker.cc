#include "parallel/descriptor_waker.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>
#include <utility>

namespace cadre {
namespace {

std::string SystemError(const char* call) {
  return fmt::format("{}: {}", call, std::generic_category().message(errno));
}

}  // namespace

absl::StatusOr<std::unique_ptr<DescriptorWaker>> DescriptorWaker::Create(
    int descriptor, std::function<void()> ring) {
  std::unique_ptr<DescriptorWaker> waker(new DescriptorWaker(descriptor, std::move(ring)));
  waker->epoll_ = epoll_create1(EPOLL_CLOEXEC);
  if (waker->epoll_ < 0) return Internal("{}", SystemError("epoll_create1"));
  waker->stop_ = eventfd(0, EFD_CLOEXEC);
  if (waker->stop_ < 0) return Internal("{}", SystemError("eventfd"));
  waker->timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  if (waker->timer_ < 0) return Internal("{}", SystemError("timerfd_create"));
  epoll_event stop{.events = EPOLLIN, .data = {.fd = waker->stop_}};
  epoll_event timer{.events = EPOLLIN, .data = {.fd = waker->timer_}};
  epoll_event disarmed{.events = EPOLLONESHOT, .data = {.fd = descriptor}};
  if (epoll_ctl(waker->epoll_, EPOLL_CTL_ADD, waker->stop_, &stop) != 0 ||
      epoll_ctl(waker->epoll_, EPOLL_CTL_ADD, waker->timer_, &timer) != 0 ||
      epoll_ctl(waker->epoll_, EPOLL_CTL_ADD, descriptor, &disarmed) != 0) {
    return Internal("{}", SystemError("epoll_ctl"));
  }
  waker->thread_ = std::thread([w = waker.get()] { w->Run(); });
  return waker;
}

DescriptorWaker::DescriptorWaker(int descriptor, std::function<void()> ring)
    : descriptor_(descriptor), ring_(std::move(ring)) {}

DescriptorWaker::~DescriptorWaker() {
  if (thread_.joinable()) {
    const uint64_t one = 1;
    CADRE_CHECK(write(stop_, &one, sizeof(one)) == sizeof(one), "{}", SystemError("write"));
    thread_.join();
  }
  for (int descriptor : {epoll_, stop_, timer_}) {
    if (descriptor >= 0) close(descriptor);
  }
}

void DescriptorWaker::Arm(bool came) {
  if (came) {
    in_vain_ = 0;
  } else if (called_.exchange(false)) {
    ++in_vain_;
  }
  if (in_vain_ < kPatience) return Watch();
  constexpr auto kDelayNs = std::chrono::duration_cast<std::chrono::nanoseconds>(kDelay).count();
  const itimerspec later{.it_interval = {}, .it_value = {.tv_sec = 0, .tv_nsec = kDelayNs}};
  CADRE_CHECK(timerfd_settime(timer_, 0, &later, nullptr) == 0, "{}",
              SystemError("timerfd_settime"));
}

void DescriptorWaker::Watch() {
  epoll_event armed{.events = EPOLLIN | EPOLLONESHOT, .data = {.fd = descriptor_}};
  CADRE_CHECK(epoll_ctl(epoll_, EPOLL_CTL_MOD, descriptor_, &armed) == 0, "{}",
              SystemError("epoll_ctl"));
}

void DescriptorWaker::Run() {
  while (true) {
    epoll_event event;
    const int count = epoll_wait(epoll_, &event, 1, -1);
    CADRE_CHECK(count == 1 || errno == EINTR, "{}", SystemError("epoll_wait"));
    if (count != 1) continue;
    if (event.data.fd == stop_) return;
    if (event.data.fd == timer_) {
      uint64_t expired;
      CADRE_CHECK(read(timer_, &expired, sizeof(expired)) == sizeof(expired), "{}",
                  SystemError("read"));
      Watch();
      continue;
    }
    called_ = true;
    ring_();
  }
}

}  // namespace cadre
