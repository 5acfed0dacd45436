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
std::atomic<bool> reload_requested = false;
std::atomic<bool> failure_reported = false;
std::atomic<bool> first_ends = false;
std::atomic<bool> second_ends = true;
sem_t posted;

// Any thread of the process may be the one that runs this.
void OnStopSignal(int) {
  if (stop_requested.exchange(true)) {
    if (second_ends) _exit(130);
    return;
  }
  if (first_ends) _exit(0);
  const int kept = errno;
  sem_post(&posted);
  errno = kept;
}

void OnReloadSignal(int) {
  reload_requested = true;
  const int kept = errno;
  sem_post(&posted);
  errno = kept;
}

}  // namespace

const std::atomic<bool>& CatchStopSignals() {
  sem_init(&posted, 0, 0);
  second_ends = !Variable(kLauncherVariable);
  struct sigaction action = {};
  action.sa_handler = OnStopSignal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  return stop_requested;
}

void EndAtFirstStop(bool at_once) { first_ends = at_once; }

void CatchReloadSignal() {
  struct sigaction action = {};
  action.sa_handler = OnReloadSignal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGHUP, &action, nullptr);
}

void ReportFailure() {
  failure_reported = true;
  sem_post(&posted);
}

Signal WaitForSignal() {
  while (true) {
    if (failure_reported) return Signal::kFailure;
    if (stop_requested) return Signal::kStop;
    if (reload_requested.exchange(false)) return Signal::kReload;
    sem_wait(&posted);
  }
}

}  // namespace cadre::cli
