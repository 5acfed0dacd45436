#include "cli/model_folder.h"

#include <cstdio>
#include <filesystem>
#include <system_error>

#include "training/checkpoint_weights.h"

namespace cadre::cli {

std::string ModelFolder(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error) ||
      std::filesystem::exists(path + "/config.json", error)) {
    return path;
  }
  // What is no run either is named by who reads the model.
  const absl::StatusOr<std::string> checkpoint = NewestCheckpoint(path);
  if (!checkpoint.ok()) return path;
  std::fprintf(stderr, "--model %s: %s is taken\n", path.c_str(), checkpoint->c_str());
  return *checkpoint;
}

}  // namespace cadre::cli
