// What this process holds in memory, as the system counts it: pages of all threads, of the program
// itself and of mapped files included. Callable from any thread.
#pragma once

#include <cstdint>

namespace cadre {

struct ResidentMemory {
  int64_t now = 0;   // bytes
  int64_t peak = 0;  // the most since the program started
};
// Zeros where the system does not say (no /proc).
ResidentMemory ReadResidentMemory();

}  // namespace cadre
