// The formats of JSON Schema's strings, as regular expressions of this folder's subset.
#pragma once

#include <string>
#include <string_view>

#include "core/status.h"

namespace cadre {

// Anchored. kInvalidArgument: a format that is not supported, with those that are.
absl::StatusOr<std::string> FormatPattern(std::string_view format);

}  // namespace cadre
