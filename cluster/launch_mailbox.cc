#include "cluster/launch_mailbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

namespace cadre {

LaunchMailbox::LaunchMailbox() : bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

LaunchMailbox::~LaunchMailbox() { close(bell_); }

void LaunchMailbox::Post(Mail mail) {
  {
    const std::lock_guard lock(mutex_);
    mail_.push_back(std::move(mail));
  }
  const uint64_t one = 1;
  // Full only when it already wakes.
  [[maybe_unused]] const ssize_t n = write(bell_, &one, sizeof one);
}

std::deque<LaunchMailbox::Mail> LaunchMailbox::Take() {
  uint64_t rings;
  [[maybe_unused]] const ssize_t n = read(bell_, &rings, sizeof rings);
  const std::lock_guard lock(mutex_);
  return std::exchange(mail_, {});
}

}  // namespace cadre
