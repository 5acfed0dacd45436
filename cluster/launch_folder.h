// A launcher's private folder for its ranks' flight records. It goes with the launcher; what one
// that was killed left behind, the next one removes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

class LaunchFolder {
 public:
  // In the first of `parents` that can be written; empty ones are passed over.
  static absl::StatusOr<std::unique_ptr<LaunchFolder>> Create(
      const std::vector<std::string>& parents);
  ~LaunchFolder();
  LaunchFolder(const LaunchFolder&) = delete;
  LaunchFolder& operator=(const LaunchFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  LaunchFolder() = default;
  std::string path_;
  int lock_ = -1;  // held while its launcher lives
};

}  // namespace cadre
