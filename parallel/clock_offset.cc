#include "parallel/clock_offset.h"

#include <algorithm>
#include <chrono>

#include "core/host_allocator.h"

namespace cadre {
namespace {

// The first ones also open connections.
constexpr int kTrips = 16;

absl::Status Answer(Communicator& world, int rank, const Tensor& message) {
  for (int i = 0; i < kTrips; ++i) {
    CADRE_RETURN_IF_ERROR(world.Receive(message, rank, {"clock"})->Wait());
    *message.data<int64_t>() = MonotonicNanoseconds();
    CADRE_RETURN_IF_ERROR(world.Send(message, rank, {"clock"})->Wait());
  }
  return absl::OkStatus();
}

}  // namespace

int64_t MonotonicNanoseconds() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

ClockOffset OffsetOf(const std::vector<RoundTrip>& trips) {
  const auto best = std::ranges::min_element(
      trips, {}, [](const RoundTrip& trip) { return trip.back - trip.sent; });
  CADRE_CHECK(best != trips.end());
  const int64_t half = (best->back - best->sent) / 2;
  return {.offset_ns = best->answered - (best->sent + half), .bound_ns = half};
}

absl::StatusOr<ClockOffset> MeasureClockOffset(Communicator& world, const std::vector<int>& local) {
  HostAllocator allocator;
  const Tensor message = Tensor::Zeros(allocator, {1}, DType::kI64);
  if (world.rank() == 0) {
    for (int rank = 1; rank < world.size(); ++rank) {
      if (std::ranges::find(local, rank) != local.end()) continue;
      CADRE_RETURN_IF_ERROR(Answer(world, rank, message));
    }
    return ClockOffset{};
  }
  if (std::ranges::find(local, 0) != local.end()) return ClockOffset{};
  std::vector<RoundTrip> trips;
  for (int i = 0; i < kTrips; ++i) {
    RoundTrip trip{.sent = MonotonicNanoseconds()};
    CADRE_RETURN_IF_ERROR(world.Send(message, 0, {"clock"})->Wait());
    CADRE_RETURN_IF_ERROR(world.Receive(message, 0, {"clock"})->Wait());
    trip.back = MonotonicNanoseconds();
    trip.answered = *message.data<int64_t>();
    trips.push_back(trip);
  }
  return OffsetOf(trips);
}

}  // namespace cadre
