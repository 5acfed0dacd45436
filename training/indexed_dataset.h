// Token data as Megatron-LM stores them: PREFIX.bin, the raw tokens, and PREFIX.idx, where each
// sequence lies and which sequences make a document. Byte-compatible both ways.
//
//   CADRE_ASSIGN_OR_RETURN(auto data, IndexedDataset::Open("corpus"));
//   std::vector<int32_t> ids(data.DocumentLength(d));
//   CADRE_RETURN_IF_ERROR(data.ReadDocument(d, 0, ids));
//
// Files are taken as hostile: everything that Read relies on is checked by Open, each error naming
// the file and the sequence or document. The index is mapped, tokens are read as they are asked
// for; reading is const and safe from any thread.
//
// .idx, little-endian: "MMIDIDX\0\0", u64 version 1, u8 element type, u64 sequences n, u64 document
// entries m, int32 length[n] (tokens), int64 pointer[n] (bytes into .bin), int64 document[m] (first
// sequence of each, and n at the end), optionally int8 mode[n].
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/status.h"

namespace cadre {

// The file's codes. f64 and f32, which Megatron's format knows too, hold no token ids.
enum class TokenType : uint8_t { kU8 = 1, kI8 = 2, kI16 = 3, kI32 = 4, kI64 = 5, kU16 = 8 };
size_t SizeOf(TokenType type);

// Megatron's rule: u16 under 65,500 entries, else i32.
TokenType TokenTypeFor(int64_t vocab_size);

// A checked view of an .idx file's bytes, which it borrows.
class TokenIndex {
 public:
  // `bin_bytes`: size of the .bin file; `path` names the .idx in errors.
  static absl::StatusOr<TokenIndex> Parse(std::span<const std::byte> bytes, uint64_t bin_bytes,
                                          const std::string& path);

  TokenType type() const { return type_; }
  int64_t sequences() const { return sequences_; }
  int64_t documents() const { return document_entries_ - 1; }
  int64_t tokens() const { return tokens_; }
  int64_t Length(int64_t sequence) const;   // in tokens
  int64_t Pointer(int64_t sequence) const;  // in bytes
  // First sequence of a document; of documents(): sequences().
  int64_t FirstSequence(int64_t document) const;

 private:
  TokenIndex() = default;
  absl::Status CheckSequences(uint64_t bin_bytes, const std::string& path);
  absl::Status CheckDocuments(const std::string& path) const;

  const std::byte* lengths_ = nullptr;
  const std::byte* pointers_ = nullptr;
  const std::byte* firsts_ = nullptr;
  TokenType type_ = TokenType::kU16;
  int64_t sequences_ = 0;
  int64_t document_entries_ = 1;
  int64_t tokens_ = 0;
};

class IndexedDataset {
 public:
  static absl::StatusOr<IndexedDataset> Open(const std::string& prefix);

  int64_t documents() const { return index_.documents(); }
  int64_t tokens() const { return index_.tokens(); }
  const TokenIndex& index() const { return index_; }
  int64_t DocumentLength(int64_t document) const;

  // Tokens [offset, offset + ids.size()) of a document, which must have them. kDataLoss for an id
  // that is negative or no int32.
  absl::Status ReadDocument(int64_t document, int64_t offset, std::span<int32_t> ids) const;

 private:
  IndexedDataset(FileReader bin, MappedFile idx, TokenIndex index);
  absl::Status ReadSequence(int64_t sequence, int64_t offset, std::span<int32_t> ids) const;
  FileReader bin_;
  MappedFile idx_;
  TokenIndex index_;  // of idx_
};

// Streams documents into PREFIX.bin; both files appear whole on Finish. An .idx of an earlier run
// is removed before its .bin is replaced, so that no crash leaves a pair that does not belong
// together.
class IndexedDatasetWriter {
 public:
  static absl::StatusOr<IndexedDatasetWriter> Create(const std::string& prefix, TokenType type);

  // One sequence of the document at hand. kInvalidArgument for an id that the type cannot hold.
  absl::Status AddSequence(std::span<const int32_t> ids);
  // Ends the document, which may be empty.
  void EndDocument();
  // A document of one sequence.
  absl::Status AddDocument(std::span<const int32_t> ids);
  absl::Status Finish();

  int64_t documents() const { return static_cast<int64_t>(firsts_.size()) - 1; }
  int64_t tokens() const { return tokens_; }

 private:
  IndexedDatasetWriter(const std::string& prefix, TokenType type, AtomicFileWriter bin);
  absl::Status Flush();
  std::string EncodeIndex() const;

  std::string prefix_;
  TokenType type_;
  AtomicFileWriter bin_;
  std::string buffer_;
  std::vector<int32_t> lengths_;
  std::vector<int64_t> firsts_ = {0};
  int64_t tokens_ = 0;
};

}  // namespace cadre
