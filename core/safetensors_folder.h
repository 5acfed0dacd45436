// A model's weights as Hugging Face lays them out: model.safetensors, or shards named by
// model.safetensors.index.json.
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
  // model.safetensors where it exists, else the index. kNotFound where neither does.
  static absl::StatusOr<SafetensorsFolder> Open(const std::string& folder);

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

// Streams tensors, in the given order, into one file or as many shards as `max_shard_bytes` asks
// for (a tensor above it gets a shard of its own). The index comes last; each file appears whole.
// A shard ends at kMaxSafetensorsEntries, too. Files of an earlier, differently split save are not
// removed: write into a fresh folder.
class SafetensorsFolderWriter {
 public:
  static absl::StatusOr<SafetensorsFolderWriter> Create(const std::string& folder,
                                                        std::vector<SafetensorsEntry> entries,
                                                        const SafetensorsMetadata& metadata,
                                                        int64_t max_shard_bytes);
  // A whole tensor, in the order given.
  absl::Status Write(std::string_view name, std::span<const std::byte> bytes);
  absl::Status Finish();
  // File names written, without the folder; complete after Finish.
  const std::vector<std::string>& names() const { return names_; }

 private:
  SafetensorsFolderWriter() = default;
  absl::Status OpenShard();
  absl::Status FinishShard();

  std::string folder_;
  SafetensorsMetadata metadata_;
  std::vector<std::vector<SafetensorsEntry>> shards_;
  std::vector<std::string> shard_names_;
  std::vector<std::string> names_;
  std::vector<SafetensorsWriter> open_;  // none or one
  size_t shard_ = 0;                     // being written
  size_t next_ = 0;                      // tensor in it
};

}  // namespace cadre
