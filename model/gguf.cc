#include "model/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace cadre {
namespace {

constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxName = 1 << 16;
constexpr uint32_t kMaxRank = 4;

// Types of metadata, as numbered in the files.
enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kFloat32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kFloat64,
};

// Bytes of one; 0: of its own length.
constexpr int kValueBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

template <typename T>
T Read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

GgufValue Scalar(uint32_t type, const std::byte* at) {
  switch (type) {
    case kU8:
      return uint64_t{Read<uint8_t>(at)};
    case kI8:
      return int64_t{Read<int8_t>(at)};
    case kU16:
      return uint64_t{Read<uint16_t>(at)};
    case kI16:
      return int64_t{Read<int16_t>(at)};
    case kU32:
      return uint64_t{Read<uint32_t>(at)};
    case kI32:
      return int64_t{Read<int32_t>(at)};
    case kFloat32:
      return double{Read<float>(at)};
    case kBool:
      return Read<uint8_t>(at) != 0;
    case kU64:
      return Read<uint64_t>(at);
    case kI64:
      return Read<int64_t>(at);
    default:
      return Read<double>(at);
  }
}

std::optional<double> AsNumber(const GgufValue& value) {
  if (const auto* v = std::get_if<int64_t>(&value)) return static_cast<double>(*v);
  if (const auto* v = std::get_if<uint64_t>(&value)) return static_cast<double>(*v);
  if (const auto* v = std::get_if<double>(&value)) return *v;
  return std::nullopt;
}

struct TypeRow {
  GgufType type;
  std::string_view name;
  GgufBlock block;
};

constexpr TypeRow kTypes[] = {
    {GgufType::kF32, "F32", {1, 4}},       {GgufType::kF16, "F16", {1, 2}},
    {GgufType::kBF16, "BF16", {1, 2}},     {GgufType::kQ8_0, "Q8_0", {32, 34}},
    {GgufType::kQ4_0, "Q4_0", {32, 18}},   {GgufType::kQ4_K, "Q4_K", {256, 144}},
    {GgufType::kQ6_K, "Q6_K", {256, 210}},
};

const TypeRow* RowOf(uint32_t type) {
  for (const TypeRow& row : kTypes) {
    if (static_cast<uint32_t>(row.type) == type) return &row;
  }
  return nullptr;
}

}  // namespace

bool IsGguf(const std::string& path) { return path.ends_with(".gguf"); }
std::string_view Name(GgufType type) { return RowOf(static_cast<uint32_t>(type))->name; }
GgufBlock BlockOf(GgufType type) { return RowOf(static_cast<uint32_t>(type))->block; }

// Reads front to back; every read is within the file.
class GgufParser {
 public:
  explicit GgufParser(GgufFile* file, std::span<const std::byte> bytes)
      : file_(*file), bytes_(bytes) {}

  absl::Status Run() {
    static_assert(std::endian::native == std::endian::little);
    CADRE_ASSIGN_OR_RETURN(const uint32_t magic, Take<uint32_t>("the magic number"));
    if (magic != 0x46554747) return Bad("not a GGUF file");
    CADRE_ASSIGN_OR_RETURN(const uint32_t version, Take<uint32_t>("the version"));
    if (version != 2 && version != 3) {
      return Unimplemented("{}: GGUF version {} (allowed: 2, 3, little endian)", file_.name_,
                           version);
    }
    CADRE_ASSIGN_OR_RETURN(const uint64_t tensors, Take<uint64_t>("the count of tensors"));
    CADRE_ASSIGN_OR_RETURN(const uint64_t keys, Take<uint64_t>("the count of keys"));
    if (tensors > kMaxTensors || keys > kMaxKeys) {
      return Bad(fmt::format("{} tensors and {} keys (allowed: {} and {})", tensors, keys,
                             kMaxTensors, kMaxKeys));
    }
    for (uint64_t i = 0; i < keys; ++i) CADRE_RETURN_IF_ERROR(ReadKey());
    // A description takes 24 bytes at least.
    if (tensors > left() / 24) return Bad(fmt::format("{} tensors past its end", tensors));
    for (uint64_t i = 0; i < tensors; ++i) CADRE_RETURN_IF_ERROR(ReadTensor());
    return Place();
  }

 private:
  size_t left() const { return bytes_.size() - at_; }

  absl::Status Bad(std::string_view what) const {
    return InvalidArgument("{}: {}", file_.name_, what);
  }

  template <typename T>
  absl::StatusOr<T> Take(std::string_view what) {
    if (left() < sizeof(T)) return Bad(fmt::format("ends within {}", what));
    at_ += sizeof(T);
    return Read<T>(bytes_.data() + at_ - sizeof(T));
  }

  absl::StatusOr<std::string_view> TakeString(std::string_view what) {
    CADRE_ASSIGN_OR_RETURN(const uint64_t size, Take<uint64_t>(what));
    if (size > left()) return Bad(fmt::format("{}: {} bytes past its end", what, size));
    at_ += size;
    return std::string_view(reinterpret_cast<const char*>(bytes_.data() + at_ - size), size);
  }

  absl::StatusOr<std::string> TakeName(std::string_view what) {
    CADRE_ASSIGN_OR_RETURN(const std::string_view name, TakeString(what));
    if (name.empty() || name.size() > kMaxName) {
      return Bad(fmt::format("{} of {} bytes (allowed: 1 to {})", what, name.size(), kMaxName));
    }
    return std::string(name);
  }

  absl::StatusOr<GgufArray> TakeArray(const std::string& key) {
    GgufArray array;
    CADRE_ASSIGN_OR_RETURN(array.type, Take<uint32_t>(key));
    CADRE_ASSIGN_OR_RETURN(array.count, Take<uint64_t>(key));
    if (array.type == kArray || array.type > kFloat64) {
      return Bad(fmt::format("{}: an array of type {}", key, array.type));
    }
    const size_t begin = at_;
    const uint64_t least = array.type == kString ? 8 : kValueBytes[array.type];
    if (array.count > left() / least) {
      return Bad(fmt::format("{}: {} elements past its end", key, array.count));
    }
    if (array.type != kString) {
      at_ += array.count * least;
    } else {
      for (uint64_t i = 0; i < array.count; ++i) {
        CADRE_RETURN_IF_ERROR(TakeString(key).status());
      }
    }
    array.bytes = bytes_.subspan(begin, at_ - begin);
    return array;
  }

  absl::Status ReadKey() {
    CADRE_ASSIGN_OR_RETURN(std::string key, TakeName("a key"));
    CADRE_ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>(key));
    GgufValue value;
    if (type == kArray) {
      CADRE_ASSIGN_OR_RETURN(value, TakeArray(key));
    } else if (type == kString) {
      CADRE_ASSIGN_OR_RETURN(value, TakeString(key));
    } else if (type > kFloat64) {
      return Bad(fmt::format("{}: a value of type {} (allowed: 0 to 12)", key, type));
    } else {
      const auto size = static_cast<size_t>(kValueBytes[type]);
      if (left() < size) return Bad(fmt::format("ends within {}", key));
      value = Scalar(type, bytes_.data() + at_);
      at_ += size;
    }
    if (!file_.metadata_.emplace(key, value).second) return Bad("key " + key + " comes twice");
    return absl::OkStatus();
  }

  absl::Status ReadTensor() {
    GgufTensor tensor;
    CADRE_ASSIGN_OR_RETURN(tensor.name, TakeName("a tensor's name"));
    CADRE_ASSIGN_OR_RETURN(const uint32_t rank, Take<uint32_t>(tensor.name));
    if (rank < 1 || rank > kMaxRank) {
      return Bad(
          fmt::format("tensor {}: {} dimensions (allowed: 1 to {})", tensor.name, rank, kMaxRank));
    }
    uint64_t elements = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      CADRE_ASSIGN_OR_RETURN(const uint64_t dim, Take<uint64_t>(tensor.name));
      // No element takes less than half a byte.
      if (dim == 0 || dim > 2 * bytes_.size() / elements) {
        return Bad(fmt::format("tensor {}: a dimension of {} past its end", tensor.name, dim));
      }
      elements *= dim;
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(dim));
    }
    CADRE_ASSIGN_OR_RETURN(const uint32_t type, Take<uint32_t>(tensor.name));
    const TypeRow* row = RowOf(type);
    if (row == nullptr) {
      return Unimplemented(
          "{}: tensor {} has ggml type {} (allowed: F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K)",
          file_.name_, tensor.name, type);
    }
    tensor.type = row->type;
    if (tensor.columns() % row->block.elements != 0) {
      return Bad(fmt::format("tensor {}: rows of {} elements are no whole blocks of {}",
                             tensor.name, tensor.columns(), row->block.elements));
    }
    CADRE_ASSIGN_OR_RETURN(const uint64_t offset, Take<uint64_t>(tensor.name));
    offsets_.push_back(offset);
    file_.tensors_.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  // Gives the tensors their bytes.
  absl::Status Place() {
    uint64_t alignment = 32;
    if (file_.Has("general.alignment")) {
      CADRE_ASSIGN_OR_RETURN(const int64_t given,
                             file_.GetInteger("general.alignment", 8, 1 << 20));
      if (!std::has_single_bit(static_cast<uint64_t>(given))) {
        return Bad(fmt::format("general.alignment {}: a power of two is needed", given));
      }
      alignment = static_cast<uint64_t>(given);
    }
    const size_t begin = (at_ + alignment - 1) / alignment * alignment;
    std::vector<std::pair<uint64_t, uint64_t>> ranges;
    for (size_t i = 0; i < file_.tensors_.size(); ++i) {
      GgufTensor& tensor = file_.tensors_[i];
      uint64_t rows = 1;
      for (size_t d = 0; d + 1 < tensor.shape.size(); ++d) {
        rows *= static_cast<uint64_t>(tensor.shape[d]);
      }
      const uint64_t size = rows * static_cast<uint64_t>(tensor.row_bytes());
      const uint64_t room = bytes_.size() > begin ? bytes_.size() - begin : 0;
      if (offsets_[i] % alignment != 0 || offsets_[i] > room || size > room - offsets_[i]) {
        return Bad(fmt::format("tensor {}: {} bytes at {} of {}, aligned to {}", tensor.name, size,
                               offsets_[i], room, alignment));
      }
      tensor.bytes = bytes_.subspan(begin + offsets_[i], size);
      ranges.emplace_back(offsets_[i], offsets_[i] + size);
      if (!file_.index_.emplace(tensor.name, i).second) {
        return Bad("tensor " + tensor.name + " comes twice");
      }
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 0; i + 1 < ranges.size(); ++i) {
      if (ranges[i].second > ranges[i + 1].first) {
        return Bad(fmt::format("tensors overlap at {} of its data", ranges[i + 1].first));
      }
    }
    return absl::OkStatus();
  }

  GgufFile& file_;
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
  std::vector<uint64_t> offsets_;
};

absl::StatusOr<GgufFile> GgufFile::Open(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(path));
  CADRE_ASSIGN_OR_RETURN(GgufFile file, Parse(path, mapping.bytes()));
  file.mapping_.emplace(std::move(mapping));
  return file;
}

absl::StatusOr<GgufFile> GgufFile::Parse(const std::string& name,
                                         std::span<const std::byte> bytes) {
  GgufFile file;
  file.name_ = name;
  CADRE_RETURN_IF_ERROR(GgufParser(&file, bytes).Run());
  return file;
}

const GgufTensor* GgufFile::Find(std::string_view tensor) const {
  const auto found = index_.find(tensor);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::Status GgufFile::Wrong(const std::string& key, std::string_view wanted) const {
  return InvalidArgument("{}: {}: {} is needed", name_, key, wanted);
}

absl::StatusOr<const GgufValue*> GgufFile::Get(const std::string& key) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return NotFound("{}: {} is missing", name_, key);
  return &found->second;
}

absl::StatusOr<std::string_view> GgufFile::GetString(const std::string& key) const {
  CADRE_ASSIGN_OR_RETURN(const GgufValue* value, Get(key));
  const auto* text = std::get_if<std::string_view>(value);
  return text != nullptr ? absl::StatusOr<std::string_view>(*text) : Wrong(key, "a string");
}

absl::StatusOr<int64_t> GgufFile::GetInteger(const std::string& key, int64_t min,
                                             int64_t max) const {
  CADRE_ASSIGN_OR_RETURN(const GgufValue* value, Get(key));
  const std::string wanted = fmt::format("an integer of {} to {}", min, max);
  if (const auto* v = std::get_if<int64_t>(value); v != nullptr && *v >= min && *v <= max) {
    return *v;
  }
  if (const auto* v = std::get_if<uint64_t>(value);
      v != nullptr && *v <= static_cast<uint64_t>(max) && static_cast<int64_t>(*v) >= min) {
    return static_cast<int64_t>(*v);
  }
  return Wrong(key, wanted);
}

absl::StatusOr<double> GgufFile::GetNumber(const std::string& key) const {
  CADRE_ASSIGN_OR_RETURN(const GgufValue* value, Get(key));
  const std::optional<double> number = AsNumber(*value);
  return number ? absl::StatusOr<double>(*number) : Wrong(key, "a number");
}

absl::StatusOr<bool> GgufFile::GetBool(const std::string& key, bool absent) const {
  if (!Has(key)) return absent;
  CADRE_ASSIGN_OR_RETURN(const GgufValue* value, Get(key));
  const auto* flag = std::get_if<bool>(value);
  return flag != nullptr ? absl::StatusOr<bool>(*flag) : Wrong(key, "a bool");
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStrings(const std::string& key) const {
  CADRE_ASSIGN_OR_RETURN(const GgufValue* value, Get(key));
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr || array->type != kString) return Wrong(key, "an array of strings");
  std::vector<std::string_view> strings;
  strings.reserve(array->count);
  const std::byte* at = array->bytes.data();
  for (uint64_t i = 0; i < array->count; ++i) {
    const auto size = Read<uint64_t>(at);
    strings.emplace_back(reinterpret_cast<const char*>(at + 8), size);
    at += 8 + size;
  }
  return strings;
}

absl::StatusOr<std::vector<double>> GgufFile::GetNumbers(const std::string& key) const {
  CADRE_ASSIGN_OR_RETURN(const GgufValue* value, Get(key));
  const auto* array = std::get_if<GgufArray>(value);
  if (array == nullptr || array->type == kString) return Wrong(key, "an array of numbers");
  std::vector<double> numbers;
  numbers.reserve(array->count);
  const auto size = static_cast<size_t>(kValueBytes[array->type]);
  for (uint64_t i = 0; i < array->count; ++i) {
    const std::optional<double> number =
        AsNumber(Scalar(array->type, array->bytes.data() + i * size));
    if (!number) return Wrong(key, "an array of numbers");
    numbers.push_back(*number);
  }
  return numbers;
}

}  // namespace cadre
