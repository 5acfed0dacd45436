#define XXH_INLINE_ALL
#include "model/tokenizer_bpe.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/status.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

constexpr std::string_view kMark = "\u2581";  // SentencePiece's space
constexpr size_t kFewSymbols = 32;
constexpr uint32_t kNone = 0xFFFFFFFF;
// Symbols are counted in 32 bits: longer pieces are cut.
constexpr size_t kMaxWord = size_t{1} << 30;

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

size_t MergeHash(uint64_t pair, int shift) { return (pair * 0x9E3779B97F4A7C15ull) >> shift; }

// Whether the mark stands behind another character somewhere in `token`.
bool HasInnerMark(std::string_view token) {
  for (size_t at = token.find(kMark); at != std::string_view::npos;
       at = token.find(kMark, at + kMark.size())) {
    if (at != 0 && !token.substr(0, at).ends_with(kMark)) return true;
  }
  return false;
}

}  // namespace

size_t StringHash::operator()(std::string_view text) const {
  return XXH3_64bits(text.data(), text.size());
}

BpeScratch::BpeScratch() : cache_(kCacheSlots) {}

void Bpe::AddEntry(std::string_view token, int32_t id) {
  if (options_.ignore_merges) pieces_.insert_or_assign(std::string(token), id);
  if (token.empty()) return;
  const auto lead = static_cast<unsigned char>(token[0]);
  if (token.size() == 1) {
    byte_ids_[lead] = id;
  } else if (!options_.byte_level && token.size() == CharSize(lead)) {
    size_t size = 0;
    char_ids_[DecodeChar(token.data(), &size)] = id;
  } else if (token.size() == 6 && token.starts_with("<0x") && token[5] == '>') {
    for (int byte = 0; byte < 256; ++byte) {
      if (token == fmt::format("<0x{:02X}>", byte)) fallback_ids_[byte] = id;
    }
  }
}

void Bpe::ReserveMerges(size_t count) {
  const size_t slots = std::bit_ceil(std::max<size_t>(2 * count, 16));
  merges_.assign(slots, {});
  merge_shift_ = 64 - std::countr_zero(slots);
}

Bpe::Merge& Bpe::SlotOf(uint64_t pair) {
  size_t i = MergeHash(pair, merge_shift_);
  while (merges_[i].pair != kNoPair && merges_[i].pair != pair) i = (i + 1) & (merges_.size() - 1);
  return merges_[i];
}

void Bpe::AddMerge(int32_t left, int32_t right, int32_t merged, uint32_t rank) {
  const uint64_t pair = PairKey(left, right);
  SlotOf(pair) = {pair, rank, merged};
}

void Bpe::Finish(const std::vector<std::string_view>& products) {
  if (merges_.empty()) ReserveMerges(0);
  // Where no merge makes a token with a mark in its middle, no merge crosses the place before a
  // mark, so a text without pre-tokenizer may be cut there: same ids, short words, a useful cache.
  cut_before_mark_ = !options_.byte_level && !options_.ignore_merges && SymbolId(kMark) >= 0 &&
                     std::none_of(products.begin(), products.end(), HasInnerMark);
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const uint64_t pair = PairKey(left, right);
  for (size_t i = MergeHash(pair, merge_shift_);; i = (i + 1) & (merges_.size() - 1)) {
    if (merges_[i].pair == pair) return &merges_[i];
    if (merges_[i].pair == kNoPair) return nullptr;
  }
}

int32_t Bpe::SymbolId(std::string_view character) const {
  if (character.size() == 1) return byte_ids_[static_cast<unsigned char>(character[0])];
  size_t size = 0;
  const auto found = char_ids_.find(DecodeChar(character.data(), &size));
  return found == char_ids_.end() ? -1 : found->second;
}

bool Bpe::FallBackToBytes(std::string_view character, std::vector<int32_t>* ids) const {
  if (!options_.byte_fallback || options_.byte_level) return false;
  for (const char byte : character) {
    if (fallback_ids_[static_cast<unsigned char>(byte)] < 0) return false;
  }
  for (const char byte : character) ids->push_back(fallback_ids_[static_cast<unsigned char>(byte)]);
  return true;
}

void Bpe::Symbolize(std::string_view word, std::vector<int32_t>* ids) const {
  ids->clear();
  bool after_unknown = false;
  for (size_t i = 0, size = 0; i < word.size(); i += size) {
    size = options_.byte_level ? 1 : CharSize(static_cast<unsigned char>(word[i]));
    const std::string_view character = word.substr(i, size);
    const int32_t id = SymbolId(character);
    if (id >= 0) {
      ids->push_back(id);
      after_unknown = false;
    } else if (FallBackToBytes(character, ids)) {
      after_unknown = false;
    } else if (options_.unk_id >= 0) {
      if (!(after_unknown && options_.fuse_unk)) ids->push_back(options_.unk_id);
      after_unknown = true;
    }
  }
}

void Bpe::MergeFew(std::vector<int32_t>* ids) const {
  const Merge* merges[kFewSymbols];
  int32_t* id = ids->data();
  size_t count = ids->size();
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = FindMerge(id[i], id[i + 1]);
  while (count > 1) {
    size_t best = count;
    uint32_t best_rank = kNone;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] == nullptr || (best != count && merges[i]->rank >= best_rank)) continue;
      best = i;
      best_rank = merges[i]->rank;
    }
    if (best == count) break;
    id[best] = merges[best]->merged;
    std::memmove(id + best + 1, id + best + 2, (count - best - 2) * sizeof *id);
    if (best + 2 < count) {
      std::memmove(merges + best + 1, merges + best + 2, (count - best - 3) * sizeof *merges);
    }
    --count;
    if (best > 0) merges[best - 1] = FindMerge(id[best - 1], id[best]);
    if (best + 1 < count) merges[best] = FindMerge(id[best], id[best + 1]);
  }
  ids->resize(count);
}

void Bpe::MergeMany(BpeScratch& scratch) const {
  auto& symbols = scratch.symbols_;
  auto& heap = scratch.heap_;
  const auto count = static_cast<uint32_t>(scratch.ids_.size());
  const auto later = [](const BpeScratch::Candidate& a, const BpeScratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
  };
  const auto offer = [&](uint32_t at) {
    if (at == kNone || symbols[at].next == kNone) return;
    const Merge* merge = FindMerge(symbols[at].id, symbols[symbols[at].next].id);
    if (merge == nullptr) return;
    heap.push_back({merge->rank, at, merge->merged});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  symbols.resize(count);
  heap.clear();
  for (uint32_t i = 0; i < count; ++i) {
    symbols[i] = {scratch.ids_[i], i == 0 ? kNone : i - 1, i + 1 == count ? kNone : i + 1};
  }
  for (uint32_t i = 0; i < count; ++i) offer(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const BpeScratch::Candidate candidate = heap.back();
    heap.pop_back();
    BpeScratch::Symbol& left = symbols[candidate.at];
    if (left.id < 0 || left.next == kNone) continue;
    BpeScratch::Symbol& right = symbols[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    // The neighbours have changed since the candidate was offered.
    if (merge == nullptr || merge->merged != candidate.merged) continue;
    left.id = candidate.merged;
    right.id = -1;
    left.next = right.next;
    if (left.next != kNone) symbols[left.next].previous = candidate.at;
    offer(left.previous);
    offer(candidate.at);
  }
  scratch.ids_.clear();
  for (uint32_t i = 0; i != kNone; i = symbols[i].next) scratch.ids_.push_back(symbols[i].id);
}

void Bpe::EncodeWord(std::string_view word, BpeScratch& scratch, std::vector<int32_t>* ids) const {
  const uint64_t hash = XXH3_64bits(word.data(), word.size());
  BpeScratch::CachedWord& cached = scratch.cache_[hash & (BpeScratch::kCacheSlots - 1)];
  const auto tag = static_cast<uint32_t>(hash >> 32);
  if (cached.hash == tag && cached.size == word.size() &&
      std::memcmp(cached.text, word.data(), word.size()) == 0) {
    ids->insert(ids->end(), cached.ids, cached.ids + cached.count);
    return;
  }
  std::vector<int32_t>& merged = scratch.ids_;
  Symbolize(word, &merged);
  if (merged.size() > kFewSymbols) {
    MergeMany(scratch);
  } else {
    MergeFew(&merged);
  }
  ids->insert(ids->end(), merged.begin(), merged.end());
  if (word.size() > BpeScratch::kCachedBytes || merged.size() > BpeScratch::kCachedIds) return;
  cached.hash = tag;
  cached.size = static_cast<uint8_t>(word.size());
  cached.count = static_cast<uint8_t>(merged.size());
  std::memcpy(cached.text, word.data(), word.size());
  std::copy(merged.begin(), merged.end(), cached.ids);
}

void Bpe::Encode(std::string_view piece, BpeScratch& scratch, std::vector<int32_t>* ids) const {
  if (options_.ignore_merges) {
    if (const auto found = pieces_.find(piece); found != pieces_.end()) {
      ids->push_back(found->second);
      return;
    }
  }
  size_t begin = 0;
  const auto cut = [&](size_t end) {
    if (end > begin) EncodeWord(piece.substr(begin, end - begin), scratch, ids);
    begin = end;
  };
  if (cut_before_mark_) {
    size_t behind = 0;  // the end of the last mark
    for (size_t at = piece.find(kMark); at != std::string_view::npos;
         at = piece.find(kMark, behind)) {
      if (at != behind || at == 0) cut(at);
      behind = at + kMark.size();
    }
  }
  while (piece.size() - begin > kMaxWord) {
    size_t end = begin + kMaxWord;
    while ((static_cast<unsigned char>(piece[end]) & 0xC0) == 0x80) --end;
    cut(end);
  }
  cut(piece.size());
}

}  // namespace cadre
