#include "training/indexed_dataset.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string_view>
#include <utility>

namespace cadre {
namespace {

static_assert(std::endian::native == std::endian::little, "the files are read as they lie");

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr size_t kHeaderBytes = 34;

// The arrays begin at byte 34 and are aligned to nothing.
template <typename T>
T Load(const std::byte* array, int64_t index) {
  T value;
  std::memcpy(&value, array + static_cast<size_t>(index) * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void Store(T value, std::string* text) {
  text->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// Calls visitor(T{}) with the element's C++ type.
template <typename Visitor>
decltype(auto) VisitTokens(TokenType type, Visitor&& visitor) {
  switch (type) {
    case TokenType::kU8:
      return visitor(uint8_t{});
    case TokenType::kI8:
      return visitor(int8_t{});
    case TokenType::kI16:
      return visitor(int16_t{});
    case TokenType::kI32:
      return visitor(int32_t{});
    case TokenType::kI64:
      return visitor(int64_t{});
    case TokenType::kU16:
      return visitor(uint16_t{});
  }
  CADRE_CHECK(false, "unknown token type {}", static_cast<int>(type));
  __builtin_unreachable();
}

absl::StatusOr<TokenType> ParseType(uint8_t code, const std::string& path) {
  if ((code >= 1 && code <= 5) || code == 8) return static_cast<TokenType>(code);
  if (code == 6 || code == 7) {
    return InvalidArgument("{}: element type {} is a float, token ids are integers", path, code);
  }
  return InvalidArgument("{}: element type {} is unknown; allowed: 1 to 5, 8", path, code);
}

}  // namespace

size_t SizeOf(TokenType type) {
  return VisitTokens(type, [](auto zero) { return sizeof(zero); });
}

TokenType TokenTypeFor(int64_t vocab_size) {
  return vocab_size < 65500 ? TokenType::kU16 : TokenType::kI32;
}

absl::StatusOr<TokenIndex> TokenIndex::Parse(std::span<const std::byte> bytes, uint64_t bin_bytes,
                                             const std::string& path) {
  if (bytes.size() < kHeaderBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return InvalidArgument("{}: is no Megatron index: it does not begin with MMIDIDX", path);
  }
  const std::byte* at = bytes.data() + kMagic.size();
  const uint64_t version = Load<uint64_t>(at, 0);
  if (version != 1) return InvalidArgument("{}: version {}, only 1 is read", path, version);
  TokenIndex index;
  CADRE_ASSIGN_OR_RETURN(index.type_, ParseType(Load<uint8_t>(at + 8, 0), path));
  const uint64_t sequences = Load<uint64_t>(at + 9, 0);
  const uint64_t documents = Load<uint64_t>(at + 17, 0);
  const uint64_t room = bytes.size() - kHeaderBytes;
  // Bounds first, so that the products below cannot overflow.
  if (sequences > room / 12 || documents > room / 8 || documents == 0) {
    return InvalidArgument("{}: {} sequences and {} document entries in {} bytes", path, sequences,
                           documents, bytes.size());
  }
  const uint64_t needed = sequences * 12 + documents * 8;
  if (room != needed && room != needed + sequences) {
    return InvalidArgument("{}: {} bytes, {} sequences and {} document entries need {}{}", path,
                           bytes.size(), sequences, documents, kHeaderBytes + needed,
                           fmt::format(" (or {} with modes)", kHeaderBytes + needed + sequences));
  }
  index.sequences_ = static_cast<int64_t>(sequences);
  index.document_entries_ = static_cast<int64_t>(documents);
  index.lengths_ = bytes.data() + kHeaderBytes;
  index.pointers_ = index.lengths_ + sequences * 4;
  index.firsts_ = index.pointers_ + sequences * 8;
  CADRE_RETURN_IF_ERROR(index.CheckSequences(bin_bytes, path));
  CADRE_RETURN_IF_ERROR(index.CheckDocuments(path));
  return index;
}

absl::Status TokenIndex::CheckSequences(uint64_t bin_bytes, const std::string& path) {
  const uint64_t size = SizeOf(type_);
  for (int64_t i = 0; i < sequences_; ++i) {
    const int64_t length = Length(i);
    const int64_t pointer = Pointer(i);
    if (length < 0) return InvalidArgument("{}: sequence {}: length {}", path, i, length);
    const uint64_t needed = static_cast<uint64_t>(length) * size;
    if (pointer < 0 || needed > bin_bytes || static_cast<uint64_t>(pointer) > bin_bytes - needed) {
      return InvalidArgument("{}: sequence {}: {} bytes from {} are past the .bin's {}", path, i,
                             needed, pointer, bin_bytes);
    }
    // Sequences may repeat bytes, so that their sum is not bounded by the file.
    if (__builtin_add_overflow(tokens_, length, &tokens_)) {
      return InvalidArgument("{}: sequence {}: the number of tokens overflows", path, i);
    }
  }
  return absl::OkStatus();
}

absl::Status TokenIndex::CheckDocuments(const std::string& path) const {
  for (int64_t d = 0; d < document_entries_; ++d) {
    const int64_t first = FirstSequence(d);
    const int64_t low = d == 0 ? 0 : FirstSequence(d - 1);
    if (first < low || first > sequences_ || (d == 0 && first != 0)) {
      return InvalidArgument("{}: document {}: begins at sequence {}; allowed: {} to {}", path, d,
                             first, low, d == 0 ? 0 : sequences_);
    }
  }
  if (FirstSequence(documents()) != sequences_) {
    return InvalidArgument("{}: the documents end at sequence {} of {}", path,
                           FirstSequence(documents()), sequences_);
  }
  return absl::OkStatus();
}

int64_t TokenIndex::Length(int64_t sequence) const { return Load<int32_t>(lengths_, sequence); }
int64_t TokenIndex::Pointer(int64_t sequence) const { return Load<int64_t>(pointers_, sequence); }
int64_t TokenIndex::FirstSequence(int64_t document) const {
  return Load<int64_t>(firsts_, document);
}

absl::StatusOr<IndexedDataset> IndexedDataset::Open(const std::string& prefix) {
  CADRE_ASSIGN_OR_RETURN(MappedFile idx, MappedFile::Open(prefix + ".idx"));
  CADRE_ASSIGN_OR_RETURN(FileReader bin, FileReader::Open(prefix + ".bin"));
  CADRE_ASSIGN_OR_RETURN(
      const TokenIndex index,
      TokenIndex::Parse(idx.bytes(), static_cast<uint64_t>(bin.size()), idx.path()));
  return IndexedDataset(std::move(bin), std::move(idx), index);
}

IndexedDataset::IndexedDataset(FileReader bin, MappedFile idx, TokenIndex index)
    : bin_(std::move(bin)), idx_(std::move(idx)), index_(index) {}

int64_t IndexedDataset::DocumentLength(int64_t document) const {
  CADRE_CHECK(document >= 0 && document < documents(), "document {} of {}", document, documents());
  int64_t length = 0;
  const int64_t end = index_.FirstSequence(document + 1);
  for (int64_t s = index_.FirstSequence(document); s < end; ++s) length += index_.Length(s);
  return length;
}

absl::Status IndexedDataset::ReadDocument(int64_t document, int64_t offset,
                                          std::span<int32_t> ids) const {
  CADRE_CHECK(document >= 0 && document < documents() && offset >= 0, "document {} of {} from {}",
              document, documents(), offset);
  int64_t sequence = index_.FirstSequence(document);
  const int64_t end = index_.FirstSequence(document + 1);
  for (; !ids.empty(); ++sequence) {
    CADRE_CHECK(sequence < end, "{}: document {} is shorter than what is read", bin_.path(),
                document);
    const int64_t length = index_.Length(sequence);
    if (offset >= length) {
      offset -= length;
      continue;
    }
    const size_t count = std::min(ids.size(), static_cast<size_t>(length - offset));
    CADRE_RETURN_IF_ERROR(ReadSequence(sequence, offset, ids.first(count)));
    ids = ids.subspan(count);
    offset = 0;
  }
  return absl::OkStatus();
}

absl::Status IndexedDataset::ReadSequence(int64_t sequence, int64_t offset,
                                          std::span<int32_t> ids) const {
  const auto width = static_cast<int64_t>(SizeOf(index_.type()));
  std::vector<std::byte> bytes(ids.size() * static_cast<size_t>(width));
  CADRE_RETURN_IF_ERROR(bin_.ReadAt(index_.Pointer(sequence) + offset * width, bytes));
  return VisitTokens(index_.type(), [&](auto zero) -> absl::Status {
    using T = decltype(zero);
    for (size_t i = 0; i < ids.size(); ++i) {
      const T id = Load<T>(bytes.data(), static_cast<int64_t>(i));
      if (!std::in_range<int32_t>(id) || id < T{0}) {
        return DataLoss("{}: sequence {}: token {} is {}, no id", bin_.path(), sequence,
                        offset + static_cast<int64_t>(i), static_cast<int64_t>(id));
      }
      ids[i] = static_cast<int32_t>(id);
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<IndexedDatasetWriter> IndexedDatasetWriter::Create(const std::string& prefix,
                                                                  TokenType type) {
  CADRE_ASSIGN_OR_RETURN(AtomicFileWriter bin, AtomicFileWriter::Create(prefix + ".bin"));
  return IndexedDatasetWriter(prefix, type, std::move(bin));
}

IndexedDatasetWriter::IndexedDatasetWriter(const std::string& prefix, TokenType type,
                                           AtomicFileWriter bin)
    : prefix_(prefix), type_(type), bin_(std::move(bin)) {}

absl::Status IndexedDatasetWriter::AddSequence(std::span<const int32_t> ids) {
  if (!std::in_range<int32_t>(ids.size())) {
    return InvalidArgument("{}.bin: a sequence of {} tokens; at most {} are allowed", prefix_,
                           ids.size(), std::numeric_limits<int32_t>::max());
  }
  CADRE_RETURN_IF_ERROR(VisitTokens(type_, [&](auto zero) -> absl::Status {
    using T = decltype(zero);
    for (const int32_t id : ids) {
      if (id < 0 || !std::in_range<T>(id)) {
        return InvalidArgument("{}.bin: token id {}; allowed: 0 to {}", prefix_, id,
                               static_cast<int64_t>(std::numeric_limits<T>::max()));
      }
    }
    for (const int32_t id : ids) Store(static_cast<T>(id), &buffer_);
    return absl::OkStatus();
  }));
  lengths_.push_back(static_cast<int32_t>(ids.size()));
  tokens_ += static_cast<int64_t>(ids.size());
  return buffer_.size() < (1 << 20) ? absl::OkStatus() : Flush();
}

void IndexedDatasetWriter::EndDocument() {
  firsts_.push_back(static_cast<int64_t>(lengths_.size()));
}

absl::Status IndexedDatasetWriter::AddDocument(std::span<const int32_t> ids) {
  CADRE_RETURN_IF_ERROR(AddSequence(ids));
  EndDocument();
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::Flush() {
  CADRE_RETURN_IF_ERROR(bin_.Append(buffer_));
  buffer_.clear();
  return absl::OkStatus();
}

std::string IndexedDatasetWriter::EncodeIndex() const {
  std::string text(kMagic);
  text.reserve(kHeaderBytes + lengths_.size() * 12 + firsts_.size() * 8);
  Store(uint64_t{1}, &text);
  Store(static_cast<uint8_t>(type_), &text);
  Store(uint64_t{lengths_.size()}, &text);
  Store(uint64_t{firsts_.size()}, &text);
  for (const int32_t length : lengths_) Store(length, &text);
  int64_t pointer = 0;
  for (const int32_t length : lengths_) {
    Store(pointer, &text);
    pointer += length * static_cast<int64_t>(SizeOf(type_));
  }
  for (const int64_t first : firsts_) Store(first, &text);
  return text;
}

absl::Status IndexedDatasetWriter::Finish() {
  CADRE_CHECK(firsts_.back() == static_cast<int64_t>(lengths_.size()),
              "{}: finished inside a document", prefix_);
  CADRE_RETURN_IF_ERROR(Flush());
  const std::string idx = prefix_ + ".idx";
  if (unlink(idx.c_str()) != 0 && errno != ENOENT) return ErrnoError(idx, "cannot remove", errno);
  CADRE_RETURN_IF_ERROR(bin_.Commit());
  return WriteFileAtomic(idx, EncodeIndex());
}

}  // namespace cadre
