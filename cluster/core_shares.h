// Cores of a machine, shared out among its ranks.
#pragma once

#include <vector>

namespace cadre {

struct CoreShare {
  std::vector<int> cores;  // to run on; empty: any
  int threads = 1;
};

// Rank `rank` of `ranks` gets an even, contiguous part of `cores`. Where ranks outnumber cores each
// gets one thread and the system places it.
CoreShare ShareCores(const std::vector<int>& cores, int rank, int ranks);

// The cores that this process may run on.
std::vector<int> AllowedCores();

}  // namespace cadre
