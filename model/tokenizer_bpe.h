// The merge engine: turns one pre-tokenized piece into ids by byte-pair encoding, lowest rank
// first, leftmost among equals (the order of Hugging Face's library).
#pragma once

#include <absl/container/flat_hash_map.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const;
};
using TokenMap = absl::flat_hash_map<std::string, int32_t, StringHash, std::equal_to<>>;

struct BpeOptions {
  bool byte_level = false;     // the first symbols are bytes, else characters
  bool byte_fallback = false;  // characters without an entry become <0xXX> tokens
  bool fuse_unk = false;       // neighbouring unknowns become one
  bool ignore_merges = false;  // a piece that is an entry is taken whole
  int32_t unk_id = -1;         // -1: what is unknown is dropped
};

// What merging needs, reused from piece to piece: of one thread at a time. Holds a cache of words,
// which never changes a result, and belongs to one Bpe.
class BpeScratch {
 public:
  BpeScratch();

 private:
  friend class Bpe;
  static constexpr size_t kCachedBytes = 26, kCachedIds = 8, kCacheSlots = 1 << 15;
  struct alignas(64) CachedWord {
    uint32_t hash = 0;
    uint8_t size = 0, count = 0;
    char text[kCachedBytes];
    int32_t ids[kCachedIds];
  };
  struct Symbol {
    int32_t id;
    uint32_t previous, next;
  };
  struct Candidate {
    uint32_t rank, at;
    int32_t merged;
  };
  std::vector<CachedWord> cache_;
  std::vector<int32_t> ids_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
};

// Immutable once built.
class Bpe {
 public:
  explicit Bpe(const BpeOptions& options) : options_(options) {}

  // Building: every entry of the model's vocabulary, `token` in the bytes of text (byte_level) or
  // as written; then the merges by rank; then Finish.
  void AddEntry(std::string_view token, int32_t id);
  void ReserveMerges(size_t count);
  // A pair that comes twice keeps its last rank.
  void AddMerge(int32_t left, int32_t right, int32_t merged, uint32_t rank);
  // `products`: the text of everything that a merge makes.
  void Finish(const std::vector<std::string_view>& products);

  // Appends the ids of `piece` (valid UTF-8) to `ids`.
  void Encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>* ids) const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kNoPair = ~0ull;

  const Merge* FindMerge(int32_t left, int32_t right) const;
  Merge& SlotOf(uint64_t pair);
  void EncodeWord(std::string_view word, BpeScratch& scratch, std::vector<int32_t>* ids) const;
  void Symbolize(std::string_view word, std::vector<int32_t>* ids) const;
  bool FallBackToBytes(std::string_view character, std::vector<int32_t>* ids) const;
  int32_t SymbolId(std::string_view character) const;
  void MergeFew(std::vector<int32_t>* ids) const;
  void MergeMany(BpeScratch& scratch) const;

  BpeOptions options_;
  std::array<int32_t, 256> byte_ids_ = FilledTable();      // by byte (ASCII unless byte_level)
  std::array<int32_t, 256> fallback_ids_ = FilledTable();  // <0xXX>
  absl::flat_hash_map<char32_t, int32_t> char_ids_;        // beyond ASCII
  TokenMap pieces_;                                        // with ignore_merges
  std::vector<Merge> merges_;                              // open addressing, power of two
  int merge_shift_ = 64;
  bool cut_before_mark_ = false;

  static std::array<int32_t, 256> FilledTable() {
    std::array<int32_t, 256> table;
    table.fill(-1);
    return table;
  }
};

}  // namespace cadre
