// What to change in a run that does not fit its memory. Pure; nothing of the model's size is
// allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "training/memory_plan.h"

namespace cadre {

struct LeanerRun {
  std::string change;  // "parallel.tensor_parallel_size=4", "--world 16"
  int64_t bytes = 0;   // what the fullest rank holds then
};
// Changes of one field, or of the number of ranks, after which the run is possible and its fullest
// rank holds less than it does in `args`; the leanest first.
std::vector<LeanerRun> LeanerRuns(const PlanArgs& args);

// What the fullest rank holds.
int64_t MostBytes(const std::vector<RanksAlike>& ranks);

}  // namespace cadre
