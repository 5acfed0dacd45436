#include "model/tokenizer_bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace cadre {
namespace {

// Random merges over a small alphabet, and the plain definition of what they make of a word.
class RandomMerges {
 public:
  RandomMerges(std::mt19937& random, const BpeOptions& options) : bpe_(options) {
    for (char c = 'a'; c <= 'd'; ++c) Add(std::string(1, c));
    bpe_.ReserveMerges(60);
    std::vector<std::string_view> products;
    for (uint32_t rank = 0; rank < 60; ++rank) {
      const auto left = static_cast<int32_t>(random() % tokens_.size());
      const auto right = static_cast<int32_t>(random() % tokens_.size());
      const int32_t merged = Add(tokens_[left] + tokens_[right]);
      merges_[{left, right}] = {rank, merged};
      bpe_.AddMerge(left, right, merged, rank);
    }
    bpe_.Finish(products);
  }

  const Bpe& bpe() const { return bpe_; }

  std::vector<int32_t> Reference(std::string_view word) const {
    std::vector<int32_t> ids;
    for (const char c : word) ids.push_back(c - 'a');
    while (true) {
      size_t best = ids.size();
      std::pair<uint32_t, int32_t> lowest = {~0u, 0};
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        const auto found = merges_.find({ids[i], ids[i + 1]});
        if (found == merges_.end() || found->second.first >= lowest.first) continue;
        best = i;
        lowest = found->second;
      }
      if (best == ids.size()) return ids;
      ids[best] = lowest.second;
      ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
    }
  }

 private:
  int32_t Add(const std::string& token) {
    const auto [found, added] = ids_.try_emplace(token, static_cast<int32_t>(tokens_.size()));
    if (added) {
      tokens_.push_back(token);
      bpe_.AddEntry(token, found->second);
    }
    return found->second;
  }

  Bpe bpe_;
  std::vector<std::string> tokens_;
  std::map<std::string, int32_t> ids_;
  std::map<std::pair<int32_t, int32_t>, std::pair<uint32_t, int32_t>> merges_;
};

TEST(Bpe, MergesAsDefinedInShortAndLongWords) {
  std::mt19937 random(7);
  for (int round = 0; round < 50; ++round) {
    const RandomMerges merges(random, {.byte_level = round % 2 == 0});
    BpeScratch scratch;
    for (const size_t size : {1, 2, 3, 8, 20, 31, 32, 33, 40, 300}) {
      std::string word;
      const unsigned letters = 1 + random() % 4;
      for (size_t i = 0; i < size; ++i) word += static_cast<char>('a' + random() % letters);
      // The second time a short word comes from the cache.
      for (int repeat = 0; repeat < 2; ++repeat) {
        std::vector<int32_t> ids;
        merges.bpe().Encode(word, scratch, &ids);
        EXPECT_EQ(ids, merges.Reference(word)) << word;
      }
    }
  }
}

TEST(Bpe, TakesAnEntryWholeWhenMergesAreIgnored) {
  Bpe bpe({.byte_level = true, .ignore_merges = true});
  bpe.AddEntry("a", 0);
  bpe.AddEntry("b", 1);
  bpe.AddEntry("ab", 2);
  bpe.Finish({});
  BpeScratch scratch;
  std::vector<int32_t> ids;
  bpe.Encode("ab", scratch, &ids);
  bpe.Encode("aba", scratch, &ids);
  EXPECT_EQ(ids, (std::vector<int32_t>{2, 0, 1, 0}));
}

TEST(Bpe, UnknownCharacters) {
  for (const bool fuse : {false, true}) {
    Bpe bpe({.byte_fallback = true, .fuse_unk = fuse, .unk_id = 9});
    bpe.AddEntry("a", 0);
    bpe.AddEntry("<0xC3>", 1);
    bpe.AddEntry("<0xA9>", 2);
    bpe.Finish({});
    BpeScratch scratch;
    std::vector<int32_t> ids;
    bpe.Encode("é漢字a漢", scratch, &ids);
    EXPECT_EQ(ids, fuse ? (std::vector<int32_t>{1, 2, 9, 0, 9})
                        : (std::vector<int32_t>{1, 2, 9, 9, 0, 9}));
  }
}

TEST(Bpe, CutsBeforeMarksOnlyWhereNoMergeCrosses) {
  // With the merge "a" + mark the text must not be cut before the mark.
  for (const bool crossing : {false, true}) {
    Bpe bpe({});
    bpe.AddEntry("a", 0);
    bpe.AddEntry("▁", 1);
    bpe.AddEntry("▁a", 2);
    bpe.AddEntry("a▁", 3);
    bpe.ReserveMerges(2);
    bpe.AddMerge(1, 0, 2, 1);
    std::vector<std::string_view> products = {"▁a"};
    if (crossing) {
      bpe.AddMerge(0, 1, 3, 0);
      products.push_back("a▁");
    }
    bpe.Finish(products);
    BpeScratch scratch;
    std::vector<int32_t> ids;
    bpe.Encode("a▁a▁▁a", scratch, &ids);
    EXPECT_EQ(ids, crossing ? (std::vector<int32_t>{3, 3, 2}) : (std::vector<int32_t>{0, 2, 1, 2}));
  }
}

}  // namespace
}  // namespace cadre
