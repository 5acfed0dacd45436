#include "core/safetensors_folder.h"

#include <simdjson.h>
#include <unistd.h>

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"

namespace cadre {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 100'000'000;

using WeightMap = std::map<std::string, std::string>;  // tensor -> file

bool IsPlainFileName(std::string_view name) {
  return !name.empty() && name.size() <= 255 && name[0] != '.' &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string_view::npos;
}

absl::StatusOr<WeightMap> ReadIndex(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxIndexBytes));
  simdjson::dom::parser parser;
  simdjson::dom::object map;
  if (const auto error = parser.parse(text)["weight_map"].get_object().get(map)) {
    return InvalidArgument("{}: weight_map: {}; an object of file names is needed", path,
                           simdjson::error_message(error));
  }
  WeightMap files;
  for (const auto& [key, value] : map) {
    std::string_view file;
    if (value.get_string().get(file) || !IsPlainFileName(file)) {
      return InvalidArgument("{}: weight_map \"{}\": a file name without folders is needed, got {}",
                             path, key, simdjson::minify(value).substr(0, 200));
    }
    if (!files.emplace(key, file).second) {
      return InvalidArgument("{}: weight_map \"{}\": given twice", path, key);
    }
  }
  return files;
}

}  // namespace

absl::StatusOr<SafetensorsFolder> SafetensorsFolder::Open(const std::string& folder) {
  SafetensorsFolder opened;
  auto single = SafetensorsFile::Open(folder + "/" + kSingle);
  if (single.ok()) {
    opened.files_.push_back(*std::move(single));
    CADRE_RETURN_IF_ERROR(opened.AddTensors());
    return opened;
  }
  if (single.status().code() != absl::StatusCode::kNotFound) return single.status();
  const std::string index_path = folder + "/" + kIndex;
  absl::StatusOr<WeightMap> index = ReadIndex(index_path);
  if (index.status().code() == absl::StatusCode::kNotFound) {
    return NotFound("{}: holds neither {} nor {}", folder, kSingle, kIndex);
  }
  CADRE_RETURN_IF_ERROR(index.status());
  std::map<std::string, size_t> shards;
  for (const auto& [tensor, file] : *index) shards.emplace(file, 0);
  for (auto& [name, position] : shards) {
    auto shard = SafetensorsFile::Open(folder + "/" + name);
    if (!shard.ok()) return Annotate(shard.status(), index_path);
    position = opened.files_.size();
    opened.files_.push_back(*std::move(shard));
  }
  CADRE_RETURN_IF_ERROR(opened.AddTensors());
  for (const auto& [tensor, file] : *index) {
    const Tensor found = opened.Find(tensor);
    if (found.entry == nullptr || found.file != &opened.files_[shards[file]]) {
      return InvalidArgument("{}: tensor \"{}\" is not in {}, where the index places it",
                             index_path, tensor, file);
    }
  }
  if (opened.tensors_.size() == index->size()) return opened;
  for (const Tensor& tensor : opened.tensors_) {
    if (!index->contains(tensor.entry->name)) {
      return InvalidArgument("{}: tensor \"{}\" is not in the index {}", tensor.file->path(),
                             tensor.entry->name, index_path);
    }
  }
  return opened;
}

// Entries and names lie in the files' own buffers, which stay where they are when files_ moves;
// pointers to the files themselves hold because files_ is complete by now.
absl::Status SafetensorsFolder::AddTensors() {
  for (const SafetensorsFile& file : files_) {
    for (const SafetensorsEntry& entry : file.tensors()) {
      const auto [it, fresh] = by_name_.emplace(entry.name, tensors_.size());
      if (!fresh) {
        return InvalidArgument("{}: tensor \"{}\" is in {} too", file.path(), entry.name,
                               tensors_[it->second].file->path());
      }
      tensors_.push_back({&file, &entry});
    }
  }
  return absl::OkStatus();
}

SafetensorsFolder::Tensor SafetensorsFolder::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? Tensor() : tensors_[it->second];
}

absl::StatusOr<SafetensorsFolderWriter> SafetensorsFolderWriter::Create(
    const std::string& folder, std::vector<SafetensorsEntry> entries,
    const SafetensorsMetadata& metadata, int64_t max_shard_bytes) {
  SafetensorsFolderWriter writer;
  writer.folder_ = folder;
  writer.metadata_ = metadata;
  writer.shards_.emplace_back();
  uint64_t bytes = 0;
  for (SafetensorsEntry& entry : entries) {
    const std::optional<uint64_t> size = ByteSize(entry);
    if (!size) return InvalidArgument("{}: tensor \"{}\": its shape overflows", folder, entry.name);
    const std::vector<SafetensorsEntry>& shard = writer.shards_.back();
    const bool full = bytes + *size > static_cast<uint64_t>(max_shard_bytes) ||
                      shard.size() + 1 == kMaxSafetensorsEntries;
    if (!shard.empty() && full) {
      writer.shards_.emplace_back();
      bytes = 0;
    }
    bytes += *size;
    writer.shards_.back().push_back(std::move(entry));
  }
  const size_t count = writer.shards_.size();
  for (size_t i = 0; i < count; ++i) {
    writer.shard_names_.push_back(
        count == 1 ? kSingle : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, count));
  }
  CADRE_RETURN_IF_ERROR(writer.OpenShard());
  return writer;
}

absl::Status SafetensorsFolderWriter::OpenShard() {
  CADRE_ASSIGN_OR_RETURN(
      SafetensorsWriter file,
      SafetensorsWriter::Create(folder_ + "/" + shard_names_[shard_], shards_[shard_], metadata_));
  open_.push_back(std::move(file));
  next_ = 0;
  return absl::OkStatus();
}

absl::Status SafetensorsFolderWriter::FinishShard() {
  CADRE_RETURN_IF_ERROR(open_.back().Finish());
  open_.clear();
  names_.push_back(shard_names_[shard_]);
  return absl::OkStatus();
}

absl::Status SafetensorsFolderWriter::Write(std::string_view name,
                                            std::span<const std::byte> bytes) {
  if (next_ == shards_[shard_].size()) {
    CADRE_CHECK(shard_ + 1 < shards_.size(), "{}: tensor {} was not announced", folder_, name);
    CADRE_RETURN_IF_ERROR(FinishShard());
    ++shard_;
    CADRE_RETURN_IF_ERROR(OpenShard());
  }
  ++next_;
  return open_.back().Write(name, bytes);
}

absl::Status SafetensorsFolderWriter::Finish() {
  CADRE_CHECK(shard_ + 1 == shards_.size() && next_ == shards_[shard_].size(),
              "{}: finished before its last tensor", folder_);
  CADRE_RETURN_IF_ERROR(FinishShard());
  if (shards_.size() == 1) return absl::OkStatus();
  uint64_t total = 0;
  nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
  for (size_t i = 0; i < shards_.size(); ++i) {
    for (const SafetensorsEntry& entry : shards_[i]) {
      total += *ByteSize(entry);
      if (index["weight_map"].contains(entry.name)) {
        return InvalidArgument("{}: tensor \"{}\": the name is taken", folder_, entry.name);
      }
      index["weight_map"][entry.name] = shard_names_[i];
    }
  }
  index["metadata"] = {{"total_size", total}};
  CADRE_RETURN_IF_ERROR(WriteFileAtomic(folder_ + "/" + kIndex, index.dump(2) + "\n"));
  names_.push_back(kIndex);
  return absl::OkStatus();
}

}  // namespace cadre
