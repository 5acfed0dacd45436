// Interleaved 1F1B (Narayanan et al., Megatron-LM, SC21): rank r holds the stages r, r + p, r + 2p
// and so on; groups of p microbatches go through a rank's first stage, then through its second.
//
// p ranks, v stages on each, m microbatches, a multiple of p: bubble / ideal = (p - 1) / (v m),
// messages v times 1F1B's.
#include <algorithm>

#include "parallel/schedule_orders.h"

namespace cadre {

std::vector<Action> InterleavedOrder(const ScheduleSpec& spec, int rank) {
  const int p = spec.ranks, v = spec.stages_per_rank;
  const int total = spec.microbatches * v;
  // The k-th forward or backward of the rank.
  const auto step = [&](ActionKind kind, int k) {
    const int turn = k / p % v;
    const int chunk = kind == ActionKind::kForward ? turn : v - 1 - turn;
    return Compute(kind, chunk * p + rank, k / (p * v) * p + k % p);
  };
  const int warm_up = std::min(total, 2 * (p - rank - 1) + (v - 1) * p);
  std::vector<Action> order;
  for (int k = 0; k < warm_up; ++k) order.push_back(step(ActionKind::kForward, k));
  for (int k = 0; k < total; ++k) {
    if (k + warm_up < total) order.push_back(step(ActionKind::kForward, k + warm_up));
    order.push_back(step(ActionKind::kBackward, k));
  }
  return order;
}

}  // namespace cadre
