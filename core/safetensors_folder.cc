#include "core/safetensors_folder.h"

#include <simdjson.h>

#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/file.h"

namespace cadre {
namespace {

constexpr char kSuffix[] = ".safetensors";
constexpr char kIndexSuffix[] = ".index.json";
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

absl::StatusOr<SafetensorsFolder> SafetensorsFolder::Open(const std::string& folder,
                                                          const std::string& stem) {
  SafetensorsFolder opened;
  const std::string single_name = stem + kSuffix, index_name = SafetensorsIndexName(stem);
  auto single = SafetensorsFile::Open(folder + "/" + single_name);
  if (single.ok()) {
    opened.files_.push_back(*std::move(single));
    CADRE_RETURN_IF_ERROR(opened.AddTensors());
    return opened;
  }
  if (single.status().code() != absl::StatusCode::kNotFound) return single.status();
  const std::string index_path = folder + "/" + index_name;
  absl::StatusOr<WeightMap> index = ReadIndex(index_path);
  if (index.status().code() == absl::StatusCode::kNotFound) {
    return NotFound("{}: holds neither {} nor {}", folder, single_name, index_name);
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

int64_t SafetensorsShard::bytes() const {
  const uint64_t data = entries.empty() ? 0 : entries.back().end;
  return static_cast<int64_t>(header.size() + data);
}

absl::StatusOr<std::vector<SafetensorsShard>> PlanSafetensorsShards(
    const std::string& stem, std::vector<SafetensorsEntry> entries,
    const SafetensorsMetadata& metadata, int64_t max_shard_bytes) {
  std::vector<SafetensorsShard> shards(1);
  uint64_t bytes = 0;
  for (SafetensorsEntry& entry : entries) {
    const std::optional<uint64_t> size = ByteSize(entry);
    if (!size) return InvalidArgument("{}: tensor \"{}\": its shape overflows", stem, entry.name);
    const std::vector<SafetensorsEntry>& shard = shards.back().entries;
    const bool full = bytes + *size > static_cast<uint64_t>(max_shard_bytes) ||
                      shard.size() + 1 == kMaxSafetensorsEntries;
    if (!shard.empty() && full) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += *size;
    shards.back().entries.push_back(std::move(entry));
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    SafetensorsShard& shard = shards[i];
    shard.name = shards.size() == 1
                     ? stem + kSuffix
                     : fmt::format("{}-{:05}-of-{:05}{}", stem, i + 1, shards.size(), kSuffix);
    CADRE_ASSIGN_OR_RETURN(shard.header, LayOutSafetensors(shard.name, metadata, &shard.entries));
  }
  return shards;
}

std::string SafetensorsIndexName(const std::string& stem) { return stem + kSuffix + kIndexSuffix; }

std::string SafetensorsIndex(const std::vector<SafetensorsShard>& shards) {
  uint64_t total = 0;
  nlohmann::json index = {{"weight_map", nlohmann::json::object()}};
  for (const SafetensorsShard& shard : shards) {
    for (const SafetensorsEntry& entry : shard.entries) {
      total += *ByteSize(entry);
      index["weight_map"][entry.name] = shard.name;
    }
  }
  index["metadata"] = {{"total_size", total}};
  return index.dump(2) + "\n";
}

}  // namespace cadre
