#include "core/process_memory.h"

#include <fstream>
#include <string>

namespace cadre {

ResidentMemory ReadResidentMemory() {
  ResidentMemory memory;
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmRSS:")) memory.now = std::stoll(line.substr(6)) << 10;
    if (line.starts_with("VmHWM:")) memory.peak = std::stoll(line.substr(6)) << 10;
  }
  return memory;
}

}  // namespace cadre
