#include "cli/signals.h"

#include <semaphore.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "cli/environment.h"
#include "cluster/rank_environment.h"

namespace cadre::cli {
namespace {

// A signal handler can reach nothing but what has static storage.
std::atomic<bool> stop_requested = false;
std::atomic<bool> second_ends = true;
sem_t stop_posted;

// Any thread of the process may be the one that runs this.
void OnStopSignal(int) {
  if (stop_requested.exchange(true)) {
    if (second_ends) _exit(130);
    return;
  }
  const int kept = errno;
  sem_post(&stop_posted);
  errno = kept;
}

}  // namespace

const std::atomic<bool>& CatchStopSignals() {
  sem_init(&stop_posted, 0, 0);
  second_ends = !Variable(kLauncherVariable);
  struct sigaction action = {};
  action.sa_handler = OnStopSignal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  return stop_requested;
}

void WaitForStopSignal() {
  while (!stop_requested) sem_wait(&stop_posted);
}

}  // namespace cadre::cli
