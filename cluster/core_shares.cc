#include "cluster/core_shares.h"

#include <sched.h>

#include <cstddef>

namespace cadre {

CoreShare ShareCores(const std::vector<int>& cores, int rank, int ranks) {
  const size_t count = cores.size(), n = static_cast<size_t>(ranks), i = static_cast<size_t>(rank);
  CoreShare share;
  if (n > count) return share;
  for (size_t core = count * i / n; core < count * (i + 1) / n; ++core) {
    share.cores.push_back(cores[core]);
  }
  share.threads = static_cast<int>(share.cores.size());
  return share;
}

std::vector<int> AllowedCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cores;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  }
  return cores;
}

}  // namespace cadre
