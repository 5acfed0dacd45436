// ZB-V (Qi et al., Zero Bubble Pipeline Parallelism, 2023, section 6): rank r holds the stages r
// and 2p - 1 - r, so that a microbatch goes down the ranks and up again and its backward starts on
// the rank where its forward ended.
//
// p ranks, m >= 2p - 1 microbatches, F = I = W a stage's: no rank idles between its first and last
// computation; they start one F apart, so bubble = (p - 1) F. At most 2p stages in flight, which
// are as many activations as 1F1B's first rank holds. With fewer microbatches the same order runs
// with holes.
#include <algorithm>

#include "parallel/schedule_orders.h"

namespace cadre {
namespace {

// The order for enough microbatches.
std::vector<Action> WholeOrder(int ranks, int rank, int microbatches) {
  std::vector<Action> order;
  StageOrder down(&order, rank), up(&order, 2 * ranks - 1 - rank);
  const auto whole_backward = [](StageOrder* stage) {
    stage->BackwardInput();
    stage->BackwardWeight();
  };
  for (int i = 0; i < 2 * (ranks - rank) - 1; ++i) down.Forward();
  for (int i = 0; i < rank; ++i) {
    up.Forward();
    down.Forward();
  }
  for (int i = 0; i < ranks - rank; ++i) {
    up.Forward();
    whole_backward(&up);
  }
  while (up.forwards() < microbatches) {
    if (down.forwards() < microbatches) down.Forward();
    whole_backward(&down);
    up.Forward();
    whole_backward(&up);
  }
  for (int i = 0; i < rank; ++i) {
    down.BackwardInput();
    up.BackwardInput();
  }
  while (down.backwards() < microbatches) whole_backward(&down);
  while (up.weights() < microbatches) up.BackwardWeight();
  while (down.weights() < microbatches) down.BackwardWeight();
  return order;
}

}  // namespace

std::vector<Action> ZeroBubbleVOrder(const ScheduleSpec& spec, int rank) {
  const int enough = std::max(spec.microbatches, 2 * spec.ranks - 1);
  std::vector<Action> order = WholeOrder(spec.ranks, rank, enough);
  std::erase_if(order, [&](const Action& a) { return a.microbatch >= spec.microbatches; });
  return order;
}

}  // namespace cadre
