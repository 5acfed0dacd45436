#include "model/tokenizer_pair_merger.h"

#include <algorithm>

namespace cadre {
namespace {

uint64_t Key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

void PairMerger::AddWord(std::vector<int32_t> symbols, int64_t count) {
  words_.push_back({std::move(symbols), count});
}

void PairMerger::Change(int32_t left, int32_t right, int64_t by, uint32_t word) {
  PairInfo& info = pairs_[Key(left, right)];
  info.count += by;
  if (by < 0) return;
  if (info.words.empty() || info.words.back() != word) info.words.push_back(word);
  raised_.push_back(Key(left, right));
}

void PairMerger::CountPairs() {
  for (uint32_t index = 0; index < words_.size(); ++index) {
    const Word& word = words_[index];
    for (size_t i = 0; i + 1 < word.symbols.size(); ++i) {
      Change(word.symbols[i], word.symbols[i + 1], word.count, index);
    }
  }
  raised_.clear();
  for (const auto& [pair, info] : pairs_) heap_.push_back({info.count, pair});
  std::make_heap(heap_.begin(), heap_.end());
}

std::optional<PairMerger::Pair> PairMerger::Next() {
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const Candidate top = heap_.back();
    heap_.pop_back();
    const auto found = pairs_.find(top.pair);
    if (found == pairs_.end() || found->second.count <= 0) continue;
    if (found->second.count < top.count) {
      // Joins have taken some of its occurrences since it was counted.
      heap_.push_back({found->second.count, top.pair});
      std::push_heap(heap_.begin(), heap_.end());
      continue;
    }
    return Pair{static_cast<int32_t>(top.pair >> 32), static_cast<int32_t>(top.pair), top.count};
  }
  return std::nullopt;
}

void PairMerger::JoinInWord(uint32_t index, const Pair& pair, int32_t joined) {
  std::vector<int32_t>& symbols = words_[index].symbols;
  const int64_t count = words_[index].count;
  size_t kept = 0;
  for (size_t i = 0; i < symbols.size(); ++i) {
    if (i + 1 == symbols.size() || symbols[i] != pair.left || symbols[i + 1] != pair.right) {
      symbols[kept++] = symbols[i];
      continue;
    }
    if (kept > 0) {
      Change(symbols[kept - 1], pair.left, -count, index);
      Change(symbols[kept - 1], joined, count, index);
    }
    if (i + 2 < symbols.size()) {
      Change(pair.right, symbols[i + 2], -count, index);
      Change(joined, symbols[i + 2], count, index);
    }
    symbols[kept++] = joined;
    ++i;
  }
  symbols.resize(kept);
}

void PairMerger::Join(const Pair& pair, int32_t joined) {
  const auto found = pairs_.find(Key(pair.left, pair.right));
  if (found == pairs_.end()) return;
  std::vector<uint32_t> words = std::move(found->second.words);
  pairs_.erase(found);
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  raised_.clear();
  for (const uint32_t word : words) JoinInWord(word, pair, joined);
  pairs_.erase(Key(pair.left, pair.right));
  std::sort(raised_.begin(), raised_.end());
  raised_.erase(std::unique(raised_.begin(), raised_.end()), raised_.end());
  for (const uint64_t key : raised_) {
    const auto raised = pairs_.find(key);
    if (raised == pairs_.end() || raised->second.count <= 0) continue;
    heap_.push_back({raised->second.count, key});
    std::push_heap(heap_.begin(), heap_.end());
  }
}

}  // namespace cadre
