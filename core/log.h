// Loggers for people, on standard error: `2026-01-31 12:00:00.000 I train: message`. Made in cli/
// and passed by reference to what logs; callable from any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "core/status.h"

namespace spdlog {
class logger;
}

namespace cadre {

// `level`: trace, debug, info, warn, error or off (--log-level); others are kInvalidArgument.
absl::StatusOr<std::shared_ptr<spdlog::logger>> MakeLogger(const std::string& name,
                                                           std::string_view level);

}  // namespace cadre
