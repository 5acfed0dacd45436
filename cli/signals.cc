#include "cli/signals.h"

#include <csignal>

#include <unistd.h>

namespace cadre::cli {
namespace {

// A signal handler can reach nothing but what has static storage.
std::atomic<bool> stop_requested = false;

void OnStopSignal(int) {
  if (stop_requested.exchange(true)) _exit(130);
}

}  // namespace

const std::atomic<bool>& CatchStopSignals() {
  struct sigaction action = {};
  action.sa_handler = OnStopSignal;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  return stop_requested;
}

void WaitForStopSignal() {
  sigset_t stop, before;
  sigemptyset(&stop);
  sigaddset(&stop, SIGTERM);
  sigaddset(&stop, SIGINT);
  // Blocked while the flag is looked at, so that none is missed in between.
  pthread_sigmask(SIG_BLOCK, &stop, &before);
  while (!stop_requested) sigsuspend(&before);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

}  // namespace cadre::cli
