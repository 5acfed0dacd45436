#include "training/output_lock.h"

#include <thread>
#include <utility>

#include <spdlog/spdlog.h>

namespace cadre {

absl::StatusOr<std::optional<FileLock>> LockOutput(const std::string& folder,
                                                   std::chrono::milliseconds patience,
                                                   const std::atomic<bool>* stop,
                                                   spdlog::logger& log) {
  constexpr std::chrono::milliseconds kPause{50};
  const auto deadline = std::chrono::steady_clock::now() + patience;
  for (bool said = false;; said = true) {
    absl::StatusOr<FileLock> lock = FileLock::Take(folder + "/.lock");
    if (lock.ok()) return std::optional<FileLock>(*std::move(lock));
    if (absl::IsUnimplemented(lock.status())) {
      log.warn("{}; nothing keeps another run out of the folder", Message(lock.status()));
      return std::optional<FileLock>();
    }
    if (!absl::IsFailedPrecondition(lock.status())) return lock.status();
    if (std::chrono::steady_clock::now() >= deadline || (stop != nullptr && stop->load())) {
      return Annotate(lock.status(), "another run is in the output folder");
    }
    if (!said) {
      log.info("{}; waits up to {:g} s for its end", Message(lock.status()),
               std::chrono::duration<double>(patience).count());
    }
    std::this_thread::sleep_for(kPause);
  }
}

}  // namespace cadre
