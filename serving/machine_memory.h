// How much memory the machine has. Linux; any thread.
#pragma once

#include <cstdint>

namespace cadre {

int64_t PhysicalMemory();  // bytes

// Bytes that a program could take now without swapping: MemAvailable of /proc/meminfo, or the
// physical memory where that cannot be read.
int64_t AvailableMemory();

}  // namespace cadre
