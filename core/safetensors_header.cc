// The header's JSON is read by hand, in one pass over the mapped bytes: its form is fixed and flat,
// so that bounds hold before anything is allocated and keys given twice are seen.
#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "core/safetensors.h"

namespace cadre {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kMaxName = 4096;
constexpr size_t kMaxMetadata = 16 << 20;
constexpr size_t kMaxRank = 64;

void AppendUtf8(uint32_t c, std::string* text) {
  if (c < 0x80) {
    *text += static_cast<char>(c);
    return;
  }
  const int tail = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  const uint32_t lead = c < 0x800 ? 0xc0 : c < 0x10000 ? 0xe0 : 0xf0;
  *text += static_cast<char>(lead | c >> (6 * tail));
  for (int i = tail - 1; i >= 0; --i) *text += static_cast<char>(0x80 | (c >> (6 * i) & 0x3f));
}

// The header's entries, tensors and metadata: each is one object inside the outermost. Costs a pass
// over the bytes and no memory, where parsing a million entries first would take seconds.
size_t CountEntries(std::string_view json) {
  size_t objects = 0;
  bool quoted = false;
  for (size_t i = 0; i < json.size(); ++i) {
    if (json[i] == '"') quoted = !quoted;
    if (quoted && json[i] == '\\') ++i;
    objects += !quoted && json[i] == '{' ? 1 : 0;
  }
  return objects - 1;
}

class HeaderParser {
 public:
  HeaderParser(std::string_view json, uint64_t data_size, const std::string& path)
      : json_(json), data_size_(data_size), path_(path) {}

  absl::Status Parse(SafetensorsHeader* header) {
    CADRE_RETURN_IF_ERROR(Expect('{'));
    for (bool first = true; !Accept('}'); first = false) {
      if (!first) CADRE_RETURN_IF_ERROR(Expect(','));
      CADRE_ASSIGN_OR_RETURN(std::string name, String(kMaxName));
      CADRE_RETURN_IF_ERROR(Expect(':'));
      if (!names_.insert(name).second) return Error("key \"{}\" is given twice", name);
      if (name == "__metadata__") {
        CADRE_RETURN_IF_ERROR(Metadata(&header->metadata));
      } else {
        SafetensorsEntry entry;
        entry.name = std::move(name);
        CADRE_RETURN_IF_ERROR(Tensor(&entry));
        header->tensors.push_back(std::move(entry));
      }
    }
    SkipSpace();
    if (at_ != json_.size()) return Error("text after the closing brace");
    return absl::OkStatus();
  }

 private:
  template <typename... Args>
  absl::Status Error(fmt::format_string<Args...> format, Args&&... args) const {
    return InvalidArgument("{}: header byte {}: {}", path_, at_,
                           fmt::format(format, std::forward<Args>(args)...));
  }

  void SkipSpace() {
    while (at_ < json_.size() &&
           (json_[at_] == ' ' || json_[at_] == '\n' || json_[at_] == '\t' || json_[at_] == '\r')) {
      ++at_;
    }
  }
  bool Accept(char c) {
    SkipSpace();
    if (at_ == json_.size() || json_[at_] != c) return false;
    ++at_;
    return true;
  }
  absl::Status Expect(char c) {
    if (Accept(c)) return absl::OkStatus();
    return Error("'{}' is missing", c);
  }

  absl::StatusOr<uint32_t> Hex4() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < json_.size() ? json_[at_] : ' ';
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return Error("\\u needs four hexadecimal digits");
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    return value;
  }

  absl::Status Escape(std::string* text) {
    static constexpr std::string_view kFrom = "\"\\/bfnrt";
    static constexpr std::string_view kTo = "\"\\/\b\f\n\r\t";
    if (at_ == json_.size()) return Error("a string without an end");
    const char c = json_[at_++];
    if (c != 'u') {
      const size_t i = kFrom.find(c);
      if (i == std::string_view::npos) return Error("unknown escape in a string");
      *text += kTo[i];
      return absl::OkStatus();
    }
    CADRE_ASSIGN_OR_RETURN(uint32_t code, Hex4());
    if (code >= 0xd800 && code < 0xdc00 && json_.substr(at_, 2) == "\\u") {
      at_ += 2;
      CADRE_ASSIGN_OR_RETURN(const uint32_t low, Hex4());
      if (low < 0xdc00 || low >= 0xe000) return Error("half a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    } else if (code >= 0xd800 && code < 0xe000) {
      return Error("half a surrogate pair");
    }
    AppendUtf8(code, text);
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> String(size_t max_bytes) {
    CADRE_RETURN_IF_ERROR(Expect('"'));
    std::string text;
    const size_t begin = at_;
    while (true) {
      if (at_ == json_.size()) return Error("a string without an end");
      if (text.size() > max_bytes) return Error("a string over {} bytes", max_bytes);
      const char c = json_[at_++];
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < 0x20) return Error("a control character in a string");
      if (c != '\\') {
        text += c;
        continue;
      }
      CADRE_RETURN_IF_ERROR(Escape(&text));
    }
    if (!simdjson::validate_utf8(json_.data() + begin, at_ - begin)) return Error("invalid UTF-8");
    return text;
  }

  absl::StatusOr<uint64_t> Integer(const std::string& tensor) {
    SkipSpace();
    const size_t begin = at_;
    uint64_t value = 0;
    for (; at_ < json_.size() && json_[at_] >= '0' && json_[at_] <= '9'; ++at_) {
      const uint64_t digit = static_cast<uint64_t>(json_[at_] - '0');
      if (value > (uint64_t{INT64_MAX} - digit) / 10) {
        return Error("tensor \"{}\": a number over 2^63 - 1", tensor);
      }
      value = value * 10 + digit;
    }
    if (at_ == begin || (json_[begin] == '0' && at_ - begin > 1)) {
      return Error("tensor \"{}\": a whole number without sign is missing", tensor);
    }
    return value;
  }

  absl::Status Metadata(SafetensorsMetadata* metadata) {
    CADRE_RETURN_IF_ERROR(Expect('{'));
    size_t room = kMaxMetadata;
    for (bool first = true; !Accept('}'); first = false) {
      if (!first) CADRE_RETURN_IF_ERROR(Expect(','));
      CADRE_ASSIGN_OR_RETURN(std::string key, String(std::min(room, kMaxName)));
      CADRE_RETURN_IF_ERROR(Expect(':'));
      SkipSpace();
      if (at_ == json_.size() || json_[at_] != '"') {
        return Error("__metadata__ \"{}\": only strings are allowed", key);
      }
      CADRE_ASSIGN_OR_RETURN(std::string value, String(room));
      room -= std::min(room, key.size() + value.size());
      if (!metadata->emplace(key, std::move(value)).second) {
        return Error("__metadata__ \"{}\" is given twice", key);
      }
    }
    return absl::OkStatus();
  }

  absl::Status Tensor(SafetensorsEntry* entry) {
    CADRE_RETURN_IF_ERROR(Expect('{'));
    bool dtype = false, shape = false, offsets = false;
    for (bool first = true; !Accept('}'); first = false) {
      if (!first) CADRE_RETURN_IF_ERROR(Expect(','));
      CADRE_ASSIGN_OR_RETURN(const std::string key, String(kMaxName));
      CADRE_RETURN_IF_ERROR(Expect(':'));
      bool* seen = key == "dtype"          ? &dtype
                   : key == "shape"        ? &shape
                   : key == "data_offsets" ? &offsets
                                           : nullptr;
      if (seen == nullptr) {
        return Error("tensor \"{}\": unknown key \"{}\"; allowed: dtype, shape, data_offsets",
                     entry->name, key);
      }
      if (*seen) return Error("tensor \"{}\": {} is given twice", entry->name, key);
      *seen = true;
      CADRE_RETURN_IF_ERROR(seen == &dtype   ? Type(entry)
                            : seen == &shape ? Shape(entry)
                                             : Offsets(entry));
    }
    if (!dtype || !shape || !offsets) {
      return Error("tensor \"{}\": {} is missing", entry->name,
                   !dtype   ? "dtype"
                   : !shape ? "shape"
                            : "data_offsets");
    }
    return CheckBytes(*entry);
  }

  absl::Status Type(SafetensorsEntry* entry) {
    CADRE_ASSIGN_OR_RETURN(const std::string name, String(64));
    const std::optional<StoredType> type = ParseStoredType(name);
    if (!type) return Error("tensor \"{}\": unknown dtype \"{}\"", entry->name, name);
    entry->type = *type;
    return absl::OkStatus();
  }

  absl::Status Shape(SafetensorsEntry* entry) {
    CADRE_RETURN_IF_ERROR(Expect('['));
    for (bool first = true; !Accept(']'); first = false) {
      if (!first) CADRE_RETURN_IF_ERROR(Expect(','));
      if (entry->shape.size() == kMaxRank) {
        return Error("tensor \"{}\": more than {} dimensions", entry->name, kMaxRank);
      }
      CADRE_ASSIGN_OR_RETURN(const uint64_t size, Integer(entry->name));
      entry->shape.push_back(static_cast<int64_t>(size));
    }
    return absl::OkStatus();
  }

  absl::Status Offsets(SafetensorsEntry* entry) {
    CADRE_RETURN_IF_ERROR(Expect('['));
    CADRE_ASSIGN_OR_RETURN(entry->begin, Integer(entry->name));
    CADRE_RETURN_IF_ERROR(Expect(','));
    CADRE_ASSIGN_OR_RETURN(entry->end, Integer(entry->name));
    return Expect(']');
  }

  absl::Status CheckBytes(const SafetensorsEntry& entry) const {
    if (entry.begin > entry.end || entry.end > data_size_) {
      return InvalidArgument("{}: tensor \"{}\": bytes {} to {} of {} in the file", path_,
                             entry.name, entry.begin, entry.end, data_size_);
    }
    const std::optional<uint64_t> bytes = ByteSize(entry);
    if (!bytes) {
      return InvalidArgument("{}: tensor \"{}\": its shape overflows", path_, entry.name);
    }
    if (*bytes != entry.end - entry.begin) {
      return InvalidArgument("{}: tensor \"{}\": {} bytes in the file, its shape needs {}", path_,
                             entry.name, entry.end - entry.begin, *bytes);
    }
    return absl::OkStatus();
  }

  std::string_view json_;
  uint64_t data_size_;
  const std::string& path_;
  size_t at_ = 0;
  std::unordered_set<std::string> names_;
};

// Sorts the tensors by place and checks that they fill the data exactly.
absl::Status CheckCover(uint64_t data_size, const std::string& path,
                        std::vector<SafetensorsEntry>* tensors) {
  std::stable_sort(tensors->begin(), tensors->end(), [](const auto& a, const auto& b) {
    return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
  });
  uint64_t at = 0;
  for (const SafetensorsEntry& entry : *tensors) {
    if (entry.begin != at) {
      return InvalidArgument("{}: tensor \"{}\": begins at byte {}, {} byte {}", path, entry.name,
                             entry.begin,
                             entry.begin < at ? "overlaps what ends at" : "leaves a hole from", at);
    }
    at = entry.end;
  }
  if (at != data_size) {
    return InvalidArgument("{}: the tensors end at byte {} of {}", path, at, data_size);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> file,
                                                         const std::string& path) {
  if (file.size() < 8) {
    return InvalidArgument("{}: {} bytes, a safetensors file has at least 8", path, file.size());
  }
  constexpr std::string_view kPointer = "version https://git-lfs";
  const std::string_view begin(reinterpret_cast<const char*>(file.data()),
                               std::min(file.size(), kPointer.size()));
  if (begin == kPointer) {
    return InvalidArgument("{}: a pointer of Git LFS, not the file; `git lfs pull` fetches it",
                           path);
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<uint64_t>(file[i]);
  if (length > kMaxHeader || length > file.size() - 8) {
    return InvalidArgument("{}: a header of {} bytes in a file of {}; at most {} are allowed", path,
                           length, file.size(), std::min<uint64_t>(kMaxHeader, file.size() - 8));
  }
  const std::string_view json(reinterpret_cast<const char*>(file.data()) + 8, length);
  if (!json.starts_with('{')) {
    return InvalidArgument("{}: the header does not start with '{{'", path);
  }
  if (const size_t entries = CountEntries(json); entries > kMaxSafetensorsEntries) {
    return InvalidArgument("{}: {} entries in the header; at most {} are allowed", path, entries,
                           kMaxSafetensorsEntries);
  }
  SafetensorsHeader header;
  header.data_offset = 8 + length;
  const uint64_t data_size = file.size() - header.data_offset;
  CADRE_RETURN_IF_ERROR(HeaderParser(json, data_size, path).Parse(&header));
  CADRE_RETURN_IF_ERROR(CheckCover(data_size, path, &header.tensors));
  return header;
}

}  // namespace cadre
