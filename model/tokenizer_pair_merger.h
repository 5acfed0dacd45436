// The counting core of BPE training: words as sequences of ids, the pairs in them, and the joining
// of one pair everywhere. Private to the trainer.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <optional>
#include <vector>

namespace cadre {

class PairMerger {
 public:
  struct Pair {
    int32_t left, right;
    int64_t count;
  };

  void AddWord(std::vector<int32_t> symbols, int64_t count);
  // After the last AddWord.
  void CountPairs();

  // The most frequent pair, the one of lower ids among equals; nullopt when none is left. It will
  // not be offered again: Join it, or leave it.
  std::optional<Pair> Next();
  void Join(const Pair& pair, int32_t joined);

 private:
  struct Word {
    std::vector<int32_t> symbols;
    int64_t count;
  };
  struct PairInfo {
    int64_t count = 0;
    std::vector<uint32_t> words;  // that held the pair when it was counted; some twice
  };
  struct Candidate {
    int64_t count;
    uint64_t pair;
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };

  void Change(int32_t left, int32_t right, int64_t by, uint32_t word);
  void JoinInWord(uint32_t index, const Pair& pair, int32_t joined);

  std::vector<Word> words_;
  absl::flat_hash_map<uint64_t, PairInfo> pairs_;
  std::vector<Candidate> heap_;
  std::vector<uint64_t> raised_;  // pairs whose count went up in the Join under way
};

}  // namespace cadre
