// The folder that holds a run's checkpoints: `step-NNNNNN/` each, `latest` (a symbolic link to the
// newest), and names with a leading dot for what is being written or removed.
//
//   ROOT/step-000200/  ROOT/step-000400/  ROOT/latest -> step-000400
//
// One process writes to a root at a time; any may read.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "training/manifest.h"

namespace cadre {

struct CheckpointEntry {
  int64_t step = 0;
  std::string path;
};

std::string CheckpointName(int64_t step);  // "step-000200"

// Newest first; empty where the root does not exist. Only names are looked at.
absl::StatusOr<std::vector<CheckpointEntry>> ListCheckpoints(const std::string& root);

struct FoundCheckpoint {
  std::string path;
  Manifest manifest;
};

// The newest checkpoint whose files all have their checksums; nothing where there is none. Why one
// is passed over is told to `warn` as one line. Collective over `group` (null: one process): its
// ranks share the reading, and find and are told the same.
absl::StatusOr<std::optional<FoundCheckpoint>> FindGoodCheckpoint(
    const std::string& root, const std::function<void(const std::string&)>& warn,
    Communicator* group = nullptr);

// Makes the folder that a checkpoint lies in while it is written, with a name that no other save,
// of this process or of another one, has.
absl::StatusOr<std::string> StartCheckpoint(const std::string& root, int64_t step);

// Gives a written folder its name in one step (an earlier checkpoint of the same step is exchanged
// for it), makes that durable and points `latest` to it. Every file in it must be synced already.
absl::Status PublishCheckpoint(const std::string& root, const std::string& written, int64_t step);

// Removes a folder that StartCheckpoint made; errors are of no interest.
void DiscardCheckpoint(const std::string& written);

// Keeps the newest `keep` checkpoints up to `newest_step` and removes older ones; 0 keeps all.
// Checkpoints of later steps are left alone and not counted.
absl::Status PruneCheckpoints(const std::string& root, int keep, int64_t newest_step);

// Called when a run continues from `step`: later checkpoints belong to a history that this run will
// not repeat (or are broken), so they are renamed to `step-NNNNNN.abandoned`, or `.abandoned-2` and
// so on where there is one; those are never removed. Also removes what interrupted saves left.
// Returns the names that were set aside.
absl::StatusOr<std::vector<std::string>> AbandonLaterCheckpoints(const std::string& root,
                                                                 int64_t step);

}  // namespace cadre
