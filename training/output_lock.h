// One run at a time in an output folder: two that save into one would mix their checkpoints and
// metrics, and a rank of an earlier start may still be at it when the next one begins.
#pragma once

#include <atomic>
#include <chrono>
#include <optional>
#include <string>

#include "core/file_lock.h"
#include "core/status.h"

namespace spdlog {
class logger;
}

namespace cadre {

// Longer than ranks whose launcher was killed live on (docs/launch.md).
inline constexpr std::chrono::seconds kOutputPatience{15};

// Takes `folder`/.lock, which lasts as long as what is returned; waits up to `patience`, or until
// *stop (may be null), for whoever has it. kFailedPrecondition: another run has it, and who.
// Nothing but a warning where the file system knows no locks. By one rank of a run.
absl::StatusOr<std::optional<FileLock>> LockOutput(const std::string& folder,
                                                   std::chrono::milliseconds patience,
                                                   const std::atomic<bool>* stop,
                                                   spdlog::logger& log);

}  // namespace cadre
