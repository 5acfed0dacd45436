// What every generator's computations get added. Private to parallel/schedule*.cc.
#pragma once

#include "parallel/schedule.h"

namespace cadre {

// Sends straight after what makes them, receives straight before what needs them (and before those
// any earlier message from the same peer), then what the spec and the step's end ask for.
// `orders`: by rank, valid as computations.
std::vector<std::vector<Action>> AddTransfers(const ScheduleSpec& spec,
                                              const std::vector<std::vector<Action>>& orders);

}  // namespace cadre
