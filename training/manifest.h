// manifest.json of a checkpoint: what the run's state was, and every file with its size and
// checksum. Written last, so a folder with a manifest is complete; the manifest carries a checksum
// of itself, so that a flipped byte in it is noticed too.
//
// Callable from any thread. Files are taken as hostile: sizes are bounded, names stay inside the
// folder.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/status.h"
#include "training/step_guard.h"

namespace cadre {

class Communicator;

// A run's state beyond its tensors.
struct CheckpointState {
  int64_t step = 0;  // steps done; the run continues with this one, which is the data cursor too
  uint64_t weight_version = 0;
  int64_t updates = 0;  // optimizer updates applied (skipped steps do not count)
  uint64_t seed = 0;    // of the random draws
  uint64_t data_seed = 0;
  int64_t tokens = 0;  // tokens trained on so far
  StepGuardState guard;
  std::string config;        // the resolved TrainConfig, as YAML
  std::string model_config;  // the resolved ModelConfig, as YAML; loading compares it
};

struct ManifestFile {
  int64_t size = 0;
  uint64_t checksum = 0;  // XXH3, 64 bits
};

struct Manifest {
  static constexpr int64_t kFormatVersion = 2;
  int64_t format_version = kFormatVersion;
  CheckpointState state;
  std::map<std::string, ManifestFile> files;  // by path inside the folder, '/' between parts
};

// Checksums every file under `folder` into a manifest (manifest.json itself left out). Collective
// over `group` (null: one process): each rank reads its share of the files, all get the manifest.
absl::StatusOr<Manifest> DescribeFolder(const std::string& folder, CheckpointState state,
                                        Communicator* group = nullptr);

// Writes folder/manifest.json, whole or not at all.
absl::Status WriteManifest(const std::string& folder, const Manifest& manifest);

// kNotFound: there is none. kDataLoss: torn or altered. kUnimplemented: another format version.
absl::StatusOr<Manifest> ReadManifest(const std::string& folder);

// Reads all files of a checkpoint: each must be there with its size and checksum. kDataLoss names
// the first file that differs. Collective over `group` (null: one process), whose ranks have read
// the same manifest: each file is read by one rank, and all return the first failing rank's error.
absl::Status VerifyFiles(const std::string& folder, const Manifest& manifest,
                         Communicator* group = nullptr);

}  // namespace cadre
