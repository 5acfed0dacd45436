// A set of tensors as Hugging Face lays a model's weights out: model.safetensors, or shards named
// by model.safetensors.index.json. Optimizer state lies in such sets with other names.
//
// Reading: the index must agree with the shards exactly. Refused: shard names with folders in them,
// a missing shard, a tensor of the index that its shard lacks, a tensor of a shard that the index
// lacks or places elsewhere, a name twice. Const and safe from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/safetensors.h"
#include "core/status.h"

namespace cadre {

class SafetensorsFolder {
 public:
  // STEM.safetensors where it exists, else the index. kNotFound where neither does.
  static absl::StatusOr<SafetensorsFolder> Open(const std::string& folder,
                                                const std::string& stem = "model");

  struct Tensor {
    const SafetensorsFile* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
    std::span<const std::byte> Bytes() const { return file->Bytes(*entry); }
  };
  // In the order of the shards' names, then of the bytes in each.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  // `entry` is null where there is none.
  Tensor Find(std::string_view name) const;
  const std::vector<SafetensorsFile>& files() const { return files_; }

 private:
  absl::Status AddTensors();
  std::vector<SafetensorsFile> files_;
  std::vector<Tensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

// A file of a set, planned: `header`, then the entries' bytes where their places say.
struct SafetensorsShard {
  std::string name;  // without the folder
  std::vector<SafetensorsEntry> entries;
  std::string header;
  int64_t bytes() const;  // of the file
};

// Cuts tensors, in the given order, into one file (STEM.safetensors) or as many shards
// (STEM-00001-of-00003.safetensors) as `max_shard_bytes` asks for; a tensor above it gets a shard
// of its own. A shard ends at kMaxSafetensorsEntries, too. Errors as LayOutSafetensors'.
absl::StatusOr<std::vector<SafetensorsShard>> PlanSafetensorsShards(
    const std::string& stem, std::vector<SafetensorsEntry> entries,
    const SafetensorsMetadata& metadata, int64_t max_shard_bytes);

// What belongs into STEM.safetensors.index.json where there are several shards.
std::string SafetensorsIndex(const std::vector<SafetensorsShard>& shards);
std::string SafetensorsIndexName(const std::string& stem);

}  // namespace cadre
