#include "serving/retry_after.h"

#include <absl/strings/cord.h>

#include <charconv>

namespace cadre {
namespace {

constexpr char kPayload[] = "cadre/retry-after";

}  // namespace

absl::Status WithRetryAfter(absl::Status status, int seconds) {
  status.SetPayload(kPayload, absl::Cord(std::to_string(seconds)));
  return status;
}

std::optional<int> RetryAfterOf(const absl::Status& status) {
  const auto payload = status.GetPayload(kPayload);
  if (!payload.has_value()) return std::nullopt;
  const std::string text(*payload);
  int seconds = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seconds);
  return error == std::errc() ? std::optional(seconds) : std::nullopt;
}

}  // namespace cadre
