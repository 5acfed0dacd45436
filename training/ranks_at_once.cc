#include "training/ranks_at_once.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "parallel/agree.h"
#include "parallel/world.h"

namespace cadre {
namespace {

// "" where they cannot be told.
std::string OwnCores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return "";
  return std::string(reinterpret_cast<const char*>(&cores), sizeof cores);
}

}  // namespace

double RanksAtOnce(int ranks, int cores, int threads) {
  if (cores == 0) return ranks;
  return std::clamp(static_cast<double>(cores) / std::max(1, threads), 1.0,
                    static_cast<double>(ranks));
}

absl::StatusOr<double> FindRanksAtOnce(const World* world, Communicator* group, int threads) {
  if (world == nullptr) return 1.0;
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                         GatherText(*group, OwnCores(), {"cores"}));
  cpu_set_t all, each;
  CPU_ZERO(&all);
  for (const int rank : world->local_ranks()) {
    const std::string& text = texts[static_cast<size_t>(rank)];
    if (text.size() != sizeof each) continue;
    std::memcpy(&each, text.data(), sizeof each);
    CPU_OR(&all, &all, &each);
  }
  const int local = static_cast<int>(world->local_ranks().size());
  return RanksAtOnce(local, CPU_COUNT(&all), threads) * world->size() / local;
}

}  // namespace cadre
