// Added tokens: entries that are cut out of text before anything else sees it.
#pragma once

#include <absl/container/flat_hash_map.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool normalized = false;   // matches in normalized text
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and behind it
  bool single_word = false;  // not inside a word
};

// A stretch of text (id -1), or a token.
struct TokenSegment {
  size_t begin = 0, end = 0;
  int32_t id = -1;
};

// Finds added tokens, leftmost first, the longest of those that start together. Immutable after the
// last Add.
class AddedTokenMatcher {
 public:
  // `content` is what to look for; empty ones never match.
  void Add(std::string_view content, const AddedToken& token);
  bool empty() const { return tokens_.empty(); }

  // Finds tokens in text[from, to) and appends each to `segments`, the stretch of text since the
  // segment before it first. Words and spaces are judged by all of `text`. May be called for one
  // range after the other; CloseSegments then adds what is left.
  void Find(std::string_view text, size_t from, size_t to,
            std::vector<TokenSegment>* segments) const;

 private:
  struct Entry {
    int32_t id;
    bool lstrip, rstrip, single_word;
  };
  struct Node {
    int32_t entry = -1;
  };
  // Index into tokens_ of the longest match at `at`, and where it ends; -1: none.
  int32_t LongestAt(std::string_view text, size_t at, size_t to, size_t* end) const;

  std::vector<Entry> tokens_;
  std::vector<Node> nodes_ = {Node{}};
  absl::flat_hash_map<uint64_t, uint32_t> edges_;  // node << 8 | byte
  bool starts_[256] = {};
};

void CloseSegments(size_t text_size, std::vector<TokenSegment>* segments);

}  // namespace cadre
