// How many ranks compute at once. The peak of all of them is that many times the peak of one, or
// ranks that outnumber the cores would seem to have a machine each.
#pragma once

#include "core/status.h"

namespace cadre {

class Communicator;
class World;

// Of `ranks` on a host, each with `threads` threads on the `cores` that they share: 1 to `ranks`, a
// fraction where cores are left over. cores 0: not known, all.
double RanksAtOnce(int ranks, int cores, int threads);

// Of all ranks, as if every host were this one; its cores are those that any rank there may run on.
// Collective over `group`, all ranks of `world`; both null: one process.
absl::StatusOr<double> FindRanksAtOnce(const World* world, Communicator* group, int threads);

}  // namespace cadre
