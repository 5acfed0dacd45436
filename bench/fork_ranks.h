// Ranks as processes, for benches: forks them, hands each a Bootstrap over shared memory, and
// waits. Fork before anything starts a thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/bootstrap.h"

namespace cadre::bench {

struct ForkOptions {
  int ranks = 2;
  bool pin = true;                      // rank r on core r modulo the cores
  std::vector<std::string> namespaces;  // network namespace of each rank; empty: none
};

// 0 if all ranks returned 0.
int ForkRanks(const ForkOptions& options, const std::function<int(Bootstrap&)>& body);

}  // namespace cadre::bench
