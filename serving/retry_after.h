// A status that says when to try again: seconds for HTTP's Retry-After.
#pragma once

#include <optional>

#include "core/status.h"

namespace cadre {

absl::Status WithRetryAfter(absl::Status status, int seconds);
// Nothing where the status does not say.
std::optional<int> RetryAfterOf(const absl::Status& status);

}  // namespace cadre
