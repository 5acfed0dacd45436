// Whether a schedule computes a step. Callable from any thread.
#pragma once

#include "parallel/schedule.h"

namespace cadre {

// Walks all ranks at once with messages in order, sends that go on and receives that wait. Ok
// means: every stage and microbatch has one forward and one backward (or input and weight
// gradient), each after what it needs and on the stage's rank; weight gradients of a stage rise;
// sends and receives pair up in order; nothing waits for ever; gradients are reduced once, after
// the last of them, and the optimizer comes last; no rank exceeds MostInFlight. Otherwise
// kInvalidArgument, one line with the rank, the action and what is wrong.
absl::Status ValidateSchedule(const Schedule& schedule);

}  // namespace cadre
