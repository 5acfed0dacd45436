#include "model/tokenizer_added_tokens.h"

#include <algorithm>

#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

size_t PreviousChar(std::string_view text, size_t at) {
  --at;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

char32_t CharAt(std::string_view text, size_t at) {
  size_t size = 0;
  return DecodeChar(text.data() + at, &size);
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  return (begin == 0 || !IsWordChar(CharAt(text, PreviousChar(text, begin)))) &&
         (end == text.size() || !IsWordChar(CharAt(text, end)));
}

size_t EndOf(const std::vector<TokenSegment>& segments) {
  return segments.empty() ? 0 : segments.back().end;
}

}  // namespace

void AddedTokenMatcher::Add(std::string_view content, const AddedToken& token) {
  if (content.empty()) return;
  uint32_t node = 0;
  for (const char c : content) {
    const uint64_t edge = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c);
    const auto [found, added] = edges_.try_emplace(edge, static_cast<uint32_t>(nodes_.size()));
    node = found->second;
    if (added) nodes_.push_back({});
  }
  starts_[static_cast<unsigned char>(content[0])] = true;
  nodes_[node].entry = static_cast<int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.lstrip, token.rstrip, token.single_word});
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t at, size_t to,
                                     size_t* end) const {
  int32_t longest = -1;
  uint32_t node = 0;
  for (size_t i = at; i < to; ++i) {
    const auto next =
        edges_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text[i]));
    if (next == edges_.end()) break;
    node = next->second;
    if (nodes_[node].entry < 0) continue;
    longest = nodes_[node].entry;
    *end = i + 1;
  }
  return longest;
}

void AddedTokenMatcher::Find(std::string_view text, size_t from, size_t to,
                             std::vector<TokenSegment>* segments) const {
  if (tokens_.empty()) return;
  for (size_t at = std::max(from, EndOf(*segments)); at < to;) {
    size_t stop = 0;
    const bool starts = starts_[static_cast<unsigned char>(text[at])];
    const int32_t found = starts ? LongestAt(text, at, to, &stop) : -1;
    if (found < 0) {
      ++at;
      continue;
    }
    const Entry& token = tokens_[found];
    size_t start = at;
    at = stop;
    if (token.single_word && !StandsAlone(text, start, stop)) continue;
    const size_t taken = EndOf(*segments);
    while (token.lstrip && start > taken) {
      const size_t before = PreviousChar(text, start);
      if (!IsWhitespace(CharAt(text, before))) break;
      start = before;
    }
    while (token.rstrip && stop < text.size() && IsWhitespace(CharAt(text, stop))) {
      stop += CharSize(static_cast<unsigned char>(text[stop]));
    }
    if (start > taken) segments->push_back({taken, start, -1});
    segments->push_back({start, stop, token.id});
    at = stop;
  }
}

void CloseSegments(size_t text_size, std::vector<TokenSegment>* segments) {
  const size_t taken = EndOf(*segments);
  if (taken < text_size) segments->push_back({taken, text_size, -1});
}

}  // namespace cadre
