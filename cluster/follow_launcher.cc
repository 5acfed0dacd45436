#include "cluster/follow_launcher.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <thread>

#include "core/process_stat.h"

namespace cadre {
namespace {

// Time to end a step and save.
constexpr int kSecondsToStop = 10;

void Follow(int launcher) {
  // A handler that runs on this thread would cut its sleep short.
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  pollfd gone = {.fd = launcher, .events = POLLIN, .revents = 0};
  while (poll(&gone, 1, -1) < 0 && errno == EINTR) {
  }
  kill(getpid(), SIGTERM);
  // A rank that waits for one that is stopped does not come to the end of its step.
  sleep(kSecondsToStop);
  kill(getpid(), SIGKILL);
}

}  // namespace

absl::Status FollowLauncher(int64_t launcher) {
  const int parent = OpenProcess(launcher);
  // Asked after, so that a launcher that dies in between is noticed.
  if (getppid() != launcher || parent < 0) {
    if (parent >= 0) close(parent);
    return Unavailable("the launcher, process {}, is gone", launcher);
  }
  // Nobody reads what a rank says before it saves.
  std::signal(SIGPIPE, SIG_IGN);
  // PR_SET_PDEATHSIG is no choice: it signals once for each thread of the parent that dies.
  std::thread(Follow, parent).detach();
  return absl::OkStatus();
}

}  // namespace cadre
