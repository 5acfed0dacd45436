// ZB-H1 (Qi et al., Zero Bubble Pipeline Parallelism, 2023): 1F1B's order with backward-input in
// the place of the backward. Each rank puts its weight gradients off until p microbatches are in
// flight, which 1F1B's first rank holds anyway: backward-inputs reach the first rank sooner, and
// weight gradients fill the end.
//
// p ranks, m >= p microbatches, W <= min(F, I): bubble = (p - 1) (F + I - W), p in flight.
#include <algorithm>

#include "parallel/schedule_orders.h"

namespace cadre {

std::vector<Action> ZeroBubbleH1Order(const ScheduleSpec& spec, int rank) {
  std::vector<Action> order;
  StageOrder stage(&order, rank);
  const int warm_up = std::min(spec.microbatches, spec.ranks - rank - 1);
  for (int i = 0; i < warm_up; ++i) stage.Forward();
  while (stage.forwards() < spec.microbatches) {
    stage.Forward();
    stage.BackwardInput();
    if (stage.forwards() >= spec.ranks) stage.BackwardWeight();
  }
  while (stage.backwards() < spec.microbatches) {
    stage.BackwardInput();
    stage.BackwardWeight();
  }
  while (stage.weights() < spec.microbatches) stage.BackwardWeight();
  return order;
}

}  // namespace cadre
