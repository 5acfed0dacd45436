#include "cluster/follow_launcher.h"

#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "core/process_stat.h"

namespace cadre {
namespace {

// Time to end a step and save.
constexpr int kSecondsToStop = 10;

}  // namespace

absl::Status FollowLauncher(int64_t launcher) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int parent = OpenProcess(launcher);
  // Asked after both, so that a launcher that dies in between is noticed.
  if (getppid() != launcher || parent < 0) {
    if (parent >= 0) close(parent);
    return Unavailable("the launcher, process {}, is gone", launcher);
  }
  // A rank that waits for one that is stopped does not come to the end of its step.
  std::thread([parent] {
    pollfd gone = {.fd = parent, .events = POLLIN, .revents = 0};
    while (poll(&gone, 1, -1) < 0 && errno == EINTR) {
    }
    sleep(kSecondsToStop);
    kill(getpid(), SIGKILL);
  }).detach();
  return absl::OkStatus();
}

}  // namespace cadre
