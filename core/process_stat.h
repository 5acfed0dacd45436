// What the system says of a process of this host: whether it lives, runs or is stopped. Callable
// from any thread.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace cadre {

struct ProcessStat {
  char state = '?';        // R running, S and D waiting, T stopped by a signal, t by a debugger,
                           // Z dead and not yet waited for
  int64_t start_time = 0;  // clock ticks since boot; with the id it names one process for good
};
// kNotFound: no such process (or no /proc).
absl::StatusOr<ProcessStat> ReadProcessStat(int64_t pid);

// A descriptor that is readable once the process has ended, for the caller to close; -1 and errno.
int OpenProcess(int64_t pid);

}  // namespace cadre
