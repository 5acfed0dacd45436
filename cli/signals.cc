#include "cli/signals.h"

#include <semaphore.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

namespace cadre::cli {
namespace {

// A signal handler can reach nothing but what has static storage.
std::atomic<bool> stop_requested = false;
sem_t stop_posted;

// Any thread of the process may be the one that runs this.
void OnStopSignal(int) {
  if (stop_requested.exchange(true)) _exit(130);
  const int kept = errno;
  sem_post(&stop_posted);
  errno = kept;
}

}  // namespace

const std::atomic<bool>& CatchStopSignals() {
  sem_init(&stop_posted, 0, 0);
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
