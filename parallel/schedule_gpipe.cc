// GPipe (Huang et al. 2019): all forwards, then all backwards. The paper's backwards go from the
// last microbatch to the first; here they rise, with the same bubble, for equal sums of gradients.
//
// p ranks, m microbatches: bubble / ideal = (p - 1) / m, m microbatches in flight.
#include "parallel/schedule_orders.h"

namespace cadre {

std::vector<Action> GPipeOrder(const ScheduleSpec& spec, int rank) {
  std::vector<Action> order;
  StageOrder stage(&order, rank);
  for (int i = 0; i < spec.microbatches; ++i) stage.Forward();
  for (int i = 0; i < spec.microbatches; ++i) stage.Backward();
  return order;
}

}  // namespace cadre
