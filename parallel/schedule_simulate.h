// What a schedule costs: when each action runs, where ranks idle, what they hold. Callable from any
// thread.
#pragma once

#include <vector>

#include "parallel/schedule.h"

namespace cadre {

// In any unit. A stage's time is the kind's time for a rank's share of the model, divided by the
// stages on a rank, times its cost.
struct ActionDurations {
  double forward = 1;  // recompute too
  double backward_input = 1;
  double backward_weight = 1;  // a full backward takes both, an overlapped pair all three
  // From the send until the message can be received; sender and receiver compute meanwhile.
  double communication = 0;
  double unshard = 0;
  double reduce_gradient = 0;
  double optimizer = 0;
  std::vector<double> stage_cost;  // by stage, 1 an even share; empty: all 1
};

struct Span {
  double start = 0;
  double end = 0;
};

struct SimulatedRank {
  std::vector<Span> spans;  // one an action; a receive's is the time that it waits
  double busy = 0;          // computing
  // Between its first and its last computation.
  double idle_inside = 0;
  // Most forwards in flight at once, in microbatches of the rank's share of the model. In flight:
  // from the forward until the (weight gradient's) backward.
  double peak_activations = 0;
};

struct Simulation {
  std::vector<SimulatedRank> ranks;
  double makespan = 0;
  double ideal = 0;  // the same work shared evenly, without waiting

  double bubble_share() const { return 1 - ideal / makespan; }
  double bubble_to_ideal() const { return makespan / ideal - 1; }
  double idle(int rank) const { return makespan - ranks[rank].busy; }
};

// kInvalidArgument: what ValidateSchedule finds, or durations that are negative, not finite or, for
// forward, zero.
absl::StatusOr<Simulation> SimulateSchedule(const Schedule& schedule,
                                            const ActionDurations& durations);

}  // namespace cadre
