// Safetensors files (https://huggingface.co/docs/safetensors): u64 header length N, N bytes of
// JSON, then the tensors' bytes. Reading maps the file; nothing is copied.
//
//   CADRE_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(path));
//   for (const SafetensorsEntry& entry : file.tensors()) Use(entry.name, file.Bytes(entry));
//
// A file is taken as hostile. Open refuses, before it allocates for the tensors: under 8 bytes, N
// over 100 MB or past the end, more than kMaxSafetensorsEntries, no `{`, not strict UTF-8 JSON of
// the known form, unknown keys, keys twice, metadata that are no strings, unknown dtypes, more than
// 64 dimensions, a shape whose bytes overflow or differ from end - begin, ranges that overlap,
// leave holes or run past the end. Each is kInvalidArgument with the file and the tensor's name.
//
// Reading is const and safe from any thread; a writer belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/dtype.h"
#include "core/file.h"
#include "core/status.h"

namespace cadre {

// Element types that a file may hold; more than tensors can.
enum class StoredType : uint8_t {
  kBool,
  kU8,
  kI8,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kU16,
  kI16,
  kF16,
  kBF16,
  kU32,
  kI32,
  kF32,
  kU64,
  kI64,
  kF64,
  kC64
};
size_t SizeOf(StoredType type);
std::string_view Name(StoredType type);  // as in the file: "BF16"
std::optional<StoredType> ParseStoredType(std::string_view name);
StoredType ToStoredType(DType dtype);
std::optional<DType> ToDType(StoredType type);  // none where tensors have no such type

struct SafetensorsEntry {
  std::string name;
  StoredType type = StoredType::kF32;
  std::vector<int64_t> shape;  // row-major; empty: one element
  // Of its bytes, from the end of the header; filled in by the reader and the writer.
  uint64_t begin = 0;
  uint64_t end = 0;
};

// The shape's bytes; none where that overflows or a dimension is negative.
std::optional<uint64_t> ByteSize(const SafetensorsEntry& entry);

// Tensors of one file, its metadata counted as one more: far above any published shard. More belong
// into further shards.
inline constexpr size_t kMaxSafetensorsEntries = size_t{1} << 18;

using SafetensorsMetadata = std::map<std::string, std::string>;

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> tensors;  // as they lie in the file
  SafetensorsMetadata metadata;
  uint64_t data_offset = 0;  // where the tensors' bytes begin
};

// `file` is the whole file (mapped), `path` names it in errors.
absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> file,
                                                         const std::string& path);

class SafetensorsFile {
 public:
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<SafetensorsEntry>& tensors() const { return header_.tensors; }
  const SafetensorsMetadata& metadata() const { return header_.metadata; }
  const SafetensorsEntry* Find(std::string_view name) const;  // null where there is none

  // Where an entry's bytes begin in the file.
  int64_t OffsetOf(const SafetensorsEntry& entry) const {
    return static_cast<int64_t>(header_.data_offset + entry.begin);
  }
  // Of an entry of this file; lives as long as the file object. Not aligned beyond one byte.
  std::span<const std::byte> Bytes(const SafetensorsEntry& entry) const;

 private:
  SafetensorsFile(MappedFile file, SafetensorsHeader header);
  MappedFile file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

// Lays `entries` one after the other, filling in their places, and returns what goes before them in
// a file. kInvalidArgument where names repeat, are no UTF-8, are too many or a shape overflows;
// `path` names the file in errors.
absl::StatusOr<std::string> LayOutSafetensors(const std::string& path,
                                              const SafetensorsMetadata& metadata,
                                              std::vector<SafetensorsEntry>* entries);

// Streams tensors into a file in the order given to Create; the file appears whole on Finish.
//
//   CADRE_ASSIGN_OR_RETURN(auto writer, SafetensorsWriter::Create(path, entries, {}));
//   for (...) CADRE_RETURN_IF_ERROR(writer.Append(bytes));   // in pieces of any size
//   CADRE_RETURN_IF_ERROR(writer.Finish());
class SafetensorsWriter {
 public:
  // Errors as LayOutSafetensors'.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  std::vector<SafetensorsEntry> entries,
                                                  const SafetensorsMetadata& metadata);

  // The next bytes of the tensors' concatenation.
  absl::Status Append(std::span<const std::byte> bytes);
  // A whole tensor, checked to be the next one.
  absl::Status Write(std::string_view name, std::span<const std::byte> bytes);
  // All bytes must have come.
  absl::Status Finish();

 private:
  SafetensorsWriter(AtomicFileWriter file, std::vector<SafetensorsEntry> entries);
  AtomicFileWriter file_;
  std::vector<SafetensorsEntry> entries_;
  size_t next_ = 0;       // for Write
  uint64_t written_ = 0;  // bytes of tensors
};

}  // namespace cadre
