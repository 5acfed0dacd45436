#include "serving/queue_bounds.h"

#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "serving/retry_after.h"

namespace cadre {
namespace {

// Sequences whose leaving says how fast the queue drains.
constexpr size_t kRemembered = 32;

using Counts = std::unordered_map<std::string, size_t>;  // by tenant

// Of what is over a bound by itself: no time to wait would make room for it.
absl::Status CheckAlone(size_t all, const Counts& each, const QueueLimits& limits) {
  constexpr auto kSaid = "n: {} sequences in one request, at most {}{} may run or wait at once";
  if (all > limits.sequences) return InvalidArgument(kSaid, all, limits.sequences, "");
  for (const auto& [tenant, count] : each) {
    if (limits.per_tenant == 0 || count <= limits.per_tenant) continue;
    return InvalidArgument(kSaid, count, limits.per_tenant, " of a key");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status QueueBounds::Enter(std::span<const GenerationRequest> requests, double now) {
  std::unordered_set<uint64_t> fresh;
  Counts more;
  for (const GenerationRequest& request : requests) {
    if (contains(request.id) || !fresh.insert(request.id).second) {
      return InvalidArgument("request id {} is in use", request.id);
    }
    ++more[request.tenant];
  }
  CADRE_RETURN_IF_ERROR(CheckAlone(requests.size(), more, limits_));
  if (tenants_.size() + requests.size() > limits_.sequences) {
    return WithRetryAfter(
        ResourceExhausted("queue full: {} sequences run or wait, {} came, allowed are {}",
                          tenants_.size(), requests.size(), limits_.sequences),
        RetryAfter(now));
  }
  for (const auto& [tenant, count] : more) {
    const auto found = counts_.find(tenant);
    const size_t held = found == counts_.end() ? 0 : found->second;
    if (limits_.per_tenant == 0 || held + count <= limits_.per_tenant) continue;
    return WithRetryAfter(
        ResourceExhausted("this key's queue is full: {} of its sequences run or wait, {} came, "
                          "allowed are {}",
                          held, count, limits_.per_tenant),
        RetryAfter(now));
  }
  for (const GenerationRequest& request : requests) {
    tenants_[request.id] = request.tenant;
    ++counts_[request.tenant];
  }
  return absl::OkStatus();
}

void QueueBounds::Leave(uint64_t id, double now) {
  const auto found = tenants_.find(id);
  if (found == tenants_.end()) return;
  const auto count = counts_.find(found->second);
  if (--count->second == 0) counts_.erase(count);
  tenants_.erase(found);
  left_.push_back(now);
  if (left_.size() > kRemembered) left_.pop_front();
}

int QueueBounds::RetryAfter(double now) const {
  constexpr double kMost = 600;
  if (left_.empty()) return 1;
  const double each = (now - left_.front()) / static_cast<double>(left_.size());
  const double seconds = std::ceil(each * static_cast<double>(tenants_.size()));
  return static_cast<int>(std::clamp(seconds, 1.0, kMost));
}

}  // namespace cadre
