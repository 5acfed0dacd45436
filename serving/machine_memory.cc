#include "serving/machine_memory.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace cadre {

int64_t PhysicalMemory() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
}

int64_t AvailableMemory() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  while (file >> name >> kib) {
    if (name == "MemAvailable:") return std::min(kib * 1024, PhysicalMemory());
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return PhysicalMemory();
}

}  // namespace cadre
