// GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), versions 2 and 3, little
// endian: metadata by key, and tensors whose bytes lie behind them. Reading maps the file; nothing
// is copied.
//
//   CADRE_ASSIGN_OR_RETURN(auto file, GgufFile::Open(path));
//   CADRE_ASSIGN_OR_RETURN(std::string_view arch, file.GetString("general.architecture"));
//   const GgufTensor* tensor = file.Find("token_embd.weight");
//
// A file is taken as hostile: Open refuses, before it allocates for them, counts that cannot fit in
// the file, strings and arrays past its end, arrays of arrays, keys or tensors twice, types it does
// not know, shapes that overflow or are no whole blocks, offsets that are not aligned, and tensors
// that overlap or run past the end. Each is kInvalidArgument (kUnimplemented: a tensor type or a
// version that is not read) with the file and what it is about.
//
// Const and safe from any thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "core/file.h"
#include "core/status.h"

namespace cadre {

// What a path of a model has to end in to be read as GGUF.
bool IsGguf(const std::string& path);

// As numbered in the files.
enum class GgufType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ6_K = 14,
  kBF16 = 30,
};
std::string_view Name(GgufType type);
// Elements of one block, along a row, and its bytes.
struct GgufBlock {
  int64_t elements, bytes;
};
GgufBlock BlockOf(GgufType type);

struct GgufTensor {
  std::string name;
  GgufType type = GgufType::kF32;
  std::vector<int64_t> shape;  // slowest first, as [rows, columns]
  std::span<const std::byte> bytes;

  int64_t columns() const { return shape.back(); }
  int64_t row_bytes() const { return columns() / BlockOf(type).elements * BlockOf(type).bytes; }
};

// Elements of one type, as they lie: strings with their lengths in front.
struct GgufArray {
  uint32_t type = 0;
  uint64_t count = 0;
  std::span<const std::byte> bytes;
};
using GgufValue = std::variant<int64_t, uint64_t, double, bool, std::string_view, GgufArray>;

class GgufFile {
 public:
  static absl::StatusOr<GgufFile> Open(const std::string& path);
  // From memory that outlives the result; `name` is for messages.
  static absl::StatusOr<GgufFile> Parse(const std::string& name, std::span<const std::byte> bytes);

  const std::string& name() const { return name_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  const GgufTensor* Find(std::string_view tensor) const;

  bool Has(const std::string& key) const { return metadata_.contains(key); }
  // kNotFound: no such key; kInvalidArgument: of another type or out of range.
  absl::StatusOr<std::string_view> GetString(const std::string& key) const;
  absl::StatusOr<int64_t> GetInteger(const std::string& key, int64_t min, int64_t max) const;
  absl::StatusOr<double> GetNumber(const std::string& key) const;
  absl::StatusOr<bool> GetBool(const std::string& key, bool absent) const;
  absl::StatusOr<std::vector<std::string_view>> GetStrings(const std::string& key) const;
  absl::StatusOr<std::vector<double>> GetNumbers(const std::string& key) const;

 private:
  friend class GgufParser;
  absl::StatusOr<const GgufValue*> Get(const std::string& key) const;
  absl::Status Wrong(const std::string& key, std::string_view wanted) const;

  std::string name_;
  std::optional<MappedFile> mapping_;
  std::map<std::string, GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;  // by name, into tensors_
};

}  // namespace cadre
