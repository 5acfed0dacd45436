// How far apart the monotonic clocks of two hosts are, found by messages that go there and back
// (Cristian, "Probabilistic clock synchronization", 1989): the reply of the shortest round trip was
// written at its middle, off by half of it at most.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"
#include "parallel/communicator.h"

namespace cadre {

struct ClockOffset {
  int64_t offset_ns = 0;  // to add to this rank's clock for rank 0's
  int64_t bound_ns = 0;   // how far off that is at most
};

// CLOCK_MONOTONIC, which all processes of a host share.
int64_t MonotonicNanoseconds();

// A round trip's three moments: sent and came back by this rank's clock, answered by the other's.
struct RoundTrip {
  int64_t sent = 0, answered = 0, back = 0;
};
// Of the shortest.
ClockOffset OffsetOf(const std::vector<RoundTrip>& trips);

// Collective over `world`, all ranks. `local`: those that share this rank's clock, in world's
// numbers; zero for the ones of rank 0's host.
absl::StatusOr<ClockOffset> MeasureClockOffset(Communicator& world, const std::vector<int>& local);

}  // namespace cadre
