#include "core/safetensors.h"

#include <simdjson.h>

#include <nlohmann/json.hpp>
#include <unordered_set>
#include <utility>

namespace cadre {
namespace {

struct TypeRow {
  StoredType type;
  std::string_view name;
  size_t size;
};

constexpr TypeRow kTypes[] = {
    {StoredType::kBool, "BOOL", 1},      {StoredType::kU8, "U8", 1},
    {StoredType::kI8, "I8", 1},          {StoredType::kF8E4M3, "F8_E4M3", 1},
    {StoredType::kF8E5M2, "F8_E5M2", 1}, {StoredType::kF8E8M0, "F8_E8M0", 1},
    {StoredType::kU16, "U16", 2},        {StoredType::kI16, "I16", 2},
    {StoredType::kF16, "F16", 2},        {StoredType::kBF16, "BF16", 2},
    {StoredType::kU32, "U32", 4},        {StoredType::kI32, "I32", 4},
    {StoredType::kF32, "F32", 4},        {StoredType::kU64, "U64", 8},
    {StoredType::kI64, "I64", 8},        {StoredType::kF64, "F64", 8},
    {StoredType::kC64, "C64", 8},
};

const TypeRow& Row(StoredType type) {
  const TypeRow& row = kTypes[static_cast<size_t>(type)];
  CADRE_CHECK(row.type == type);
  return row;
}

bool IsUtf8(std::string_view text) { return simdjson::validate_utf8(text.data(), text.size()); }

std::string Quote(std::string_view text) { return nlohmann::json(std::string(text)).dump(); }

// The length and the JSON, padded with spaces so that the tensors begin at a multiple of 8.
std::string EncodeHeader(const std::vector<SafetensorsEntry>& entries,
                         const SafetensorsMetadata& metadata) {
  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) json += Quote(key) + ":" + Quote(value) + ",";
    json.back() = '}';
    json += ",";
  }
  for (const SafetensorsEntry& entry : entries) {
    json += fmt::format("{}:{{\"dtype\":\"{}\",\"shape\":[", Quote(entry.name), Name(entry.type));
    for (size_t i = 0; i < entry.shape.size(); ++i) {
      json += fmt::format("{}{}", i == 0 ? "" : ",", entry.shape[i]);
    }
    json += fmt::format("],\"data_offsets\":[{},{}]}},", entry.begin, entry.end);
  }
  if (json.back() == ',') json.pop_back();
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string head(8, '\0');
  for (size_t i = 0; i < 8; ++i) head[i] = static_cast<char>(json.size() >> (8 * i) & 0xff);
  return head + json;
}

absl::Status CheckMetadata(const std::string& path, const SafetensorsMetadata& metadata) {
  for (const auto& [key, value] : metadata) {
    if (!IsUtf8(key) || !IsUtf8(value)) {
      return InvalidArgument("{}: metadata that are no UTF-8 text", path);
    }
  }
  return absl::OkStatus();
}

}  // namespace

size_t SizeOf(StoredType type) { return Row(type).size; }
std::string_view Name(StoredType type) { return Row(type).name; }

std::optional<StoredType> ParseStoredType(std::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (row.name == name) return row.type;
  }
  return std::nullopt;
}

StoredType ToStoredType(DType dtype) {
  switch (dtype) {
    case DType::kF64:
      return StoredType::kF64;
    case DType::kF32:
      return StoredType::kF32;
    case DType::kBF16:
      return StoredType::kBF16;
    case DType::kF16:
      return StoredType::kF16;
    case DType::kI8:
      return StoredType::kI8;
    case DType::kU8:
      return StoredType::kU8;
    case DType::kI32:
      return StoredType::kI32;
    case DType::kI64:
      return StoredType::kI64;
  }
  CADRE_CHECK(false, "unknown dtype {}", static_cast<int>(dtype));
  __builtin_unreachable();
}

std::optional<DType> ToDType(StoredType type) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16, DType::kI8,
                            DType::kU8, DType::kI32, DType::kI64}) {
    if (ToStoredType(dtype) == type) return dtype;
  }
  return std::nullopt;
}

std::optional<uint64_t> ByteSize(const SafetensorsEntry& entry) {
  uint64_t bytes = SizeOf(entry.type);
  for (const int64_t size : entry.shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) {
      return std::nullopt;
    }
  }
  return bytes <= uint64_t{INT64_MAX} ? std::optional(bytes) : std::nullopt;
}

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  CADRE_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(file.bytes(), path));
  return SafetensorsFile(std::move(file), std::move(header));
}

// The index views names inside header_.tensors' buffer, which moves with the object as it is.
SafetensorsFile::SafetensorsFile(MappedFile file, SafetensorsHeader header)
    : file_(std::move(file)), header_(std::move(header)) {
  by_name_.reserve(header_.tensors.size());
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name_[header_.tensors[i].name] = i;
}

const SafetensorsEntry* SafetensorsFile::Find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &header_.tensors[it->second];
}

std::span<const std::byte> SafetensorsFile::Bytes(const SafetensorsEntry& entry) const {
  return file_.bytes().subspan(header_.data_offset + entry.begin, entry.end - entry.begin);
}

absl::StatusOr<std::string> LayOutSafetensors(const std::string& path,
                                              const SafetensorsMetadata& metadata,
                                              std::vector<SafetensorsEntry>* entries) {
  CADRE_RETURN_IF_ERROR(CheckMetadata(path, metadata));
  if (entries->size() >= kMaxSafetensorsEntries) {
    return InvalidArgument("{}: {} tensors in one file; at most {} are allowed", path,
                           entries->size(), kMaxSafetensorsEntries - 1);
  }
  std::unordered_set<std::string_view> names = {"__metadata__"};
  uint64_t at = 0;
  for (SafetensorsEntry& entry : *entries) {
    if (!IsUtf8(entry.name)) return InvalidArgument("{}: a tensor's name is no UTF-8", path);
    if (!names.insert(entry.name).second) {
      return InvalidArgument("{}: tensor \"{}\": the name is taken", path, entry.name);
    }
    const std::optional<uint64_t> bytes = ByteSize(entry);
    if (!bytes || *bytes > uint64_t{INT64_MAX} - at) {
      return InvalidArgument("{}: tensor \"{}\": its shape overflows", path, entry.name);
    }
    entry.begin = at;
    entry.end = at += *bytes;
  }
  return EncodeHeader(*entries, metadata);
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::vector<SafetensorsEntry> entries,
                                                            const SafetensorsMetadata& metadata) {
  CADRE_ASSIGN_OR_RETURN(const std::string header, LayOutSafetensors(path, metadata, &entries));
  CADRE_ASSIGN_OR_RETURN(AtomicFileWriter file, AtomicFileWriter::Create(path));
  CADRE_RETURN_IF_ERROR(file.Append(header));
  return SafetensorsWriter(std::move(file), std::move(entries));
}

SafetensorsWriter::SafetensorsWriter(AtomicFileWriter file, std::vector<SafetensorsEntry> entries)
    : file_(std::move(file)), entries_(std::move(entries)) {}

absl::Status SafetensorsWriter::Append(std::span<const std::byte> bytes) {
  const uint64_t total = entries_.empty() ? 0 : entries_.back().end;
  CADRE_CHECK(bytes.size() <= total - written_, "{}: more bytes than its tensors have",
              file_.path());
  written_ += bytes.size();
  return file_.Append(bytes);
}

absl::Status SafetensorsWriter::Write(std::string_view name, std::span<const std::byte> bytes) {
  while (next_ < entries_.size() && entries_[next_].end <= written_ &&
         entries_[next_].name != name) {
    ++next_;
  }
  CADRE_CHECK(next_ < entries_.size() && entries_[next_].name == name &&
                  entries_[next_].begin == written_ &&
                  entries_[next_].end - entries_[next_].begin == bytes.size(),
              "{}: tensor {} is not the next one, or not of {} bytes", file_.path(), name,
              bytes.size());
  ++next_;
  return Append(bytes);
}

absl::Status SafetensorsWriter::Finish() {
  CADRE_CHECK(entries_.empty() || written_ == entries_.back().end,
              "{}: finished after {} of {} bytes", file_.path(), written_, entries_.back().end);
  return file_.Commit();
}

}  // namespace cadre
