// 1F1B with a flush: PipeDream-Flush (Narayanan et al. 2021), as in Megatron-LM (SC21).
//
// p ranks, m microbatches: bubble / ideal = (p - 1) / m, at most p - rank microbatches in flight.
#include <algorithm>

#include "parallel/schedule_orders.h"

namespace cadre {

std::vector<Action> OneForwardOneBackwardOrder(const ScheduleSpec& spec, int rank) {
  std::vector<Action> order;
  StageOrder stage(&order, rank);
  const int warm_up = std::min(spec.microbatches, spec.ranks - rank - 1);
  for (int i = 0; i < warm_up; ++i) stage.Forward();
  while (stage.forwards() < spec.microbatches) {
    stage.Forward();
    stage.Backward();
  }
  while (stage.backwards() < spec.microbatches) stage.Backward();
  return order;
}

}  // namespace cadre
