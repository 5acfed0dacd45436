// QueueBounds: how many sequences may be in the engine at once, in all and of each tenant, and when
// a client that finds it full had better come back.
//
// Not thread-safe: the engine guards it.
#pragma once

#include <cstddef>
#include <deque>
#include <span>
#include <string>
#include <unordered_map>

#include "core/status.h"
#include "serving/request.h"

namespace cadre {

struct QueueLimits {
  size_t sequences = 0;   // that run or wait
  size_t per_tenant = 0;  // of one tenant; 0: no bound
};

class QueueBounds {
 public:
  explicit QueueBounds(const QueueLimits& limits) : limits_(limits) {}

  // Counts all requests or none. kResourceExhausted, with a time to retry after
  // (serving/retry_after.h): over a bound. kInvalidArgument: over it whoever leaves, or an id is in
  // use. `now`: seconds on a monotonic clock, as below.
  absl::Status Enter(std::span<const GenerationRequest> requests, double now);
  // A sequence has ended, or was given up. Unknown ids are ignored.
  void Leave(uint64_t id, double now);
  bool contains(uint64_t id) const { return tenants_.contains(id); }

  // Seconds in which as many sequences leave as the queue now holds, by the rate of the last ones
  // that left; a whole number from 1 to 600.
  int RetryAfter(double now) const;

 private:
  const QueueLimits limits_;
  std::unordered_map<uint64_t, std::string> tenants_;  // of each sequence
  std::unordered_map<std::string, size_t> counts_;     // of each tenant
  std::deque<double> left_;                            // when the last ones left
};

}  // namespace cadre
