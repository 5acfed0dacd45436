#include "model/jinja_text.h"

#include <algorithm>
#include <utility>

#include <utf8proc.h>

namespace cadre::jinja {

Text::Text(std::string bytes, Origin origin) : bytes_(std::move(bytes)) {
  if (!bytes_.empty()) runs_.push_back({bytes_.size(), origin});
}

void Text::Append(std::string_view bytes, Origin origin) {
  if (bytes.empty()) return;
  bytes_.append(bytes);
  if (!runs_.empty() && runs_.back().origin == origin) {
    runs_.back().end = bytes_.size();
  } else {
    runs_.push_back({bytes_.size(), origin});
  }
}

void Text::Append(const Text& other) { AppendSlice(other, 0, other.size()); }

void Text::AppendSlice(const Text& other, size_t begin, size_t end) {
  end = std::min(end, other.size());
  auto run = std::upper_bound(other.runs_.begin(), other.runs_.end(), begin,
                              [](size_t offset, const Run& r) { return offset < r.end; });
  while (begin < end) {
    size_t stop = std::min(end, run->end);
    Append(other.view().substr(begin, stop - begin), run->origin);
    begin = stop;
    ++run;
  }
}

Text Text::Slice(size_t begin, size_t end) const {
  Text result;
  result.AppendSlice(*this, begin, end);
  return result;
}

bool Text::FromTemplate(size_t begin, size_t end) const {
  size_t start = 0;
  for (const Run& run : runs_) {
    if (run.origin == Origin::kUser && start < end && run.end > begin && begin < end) return false;
    start = run.end;
  }
  return true;
}

char32_t NextCodePoint(std::string_view text, size_t* pos) {
  utf8proc_int32_t code_point = -1;
  utf8proc_ssize_t used =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + *pos),
                       static_cast<utf8proc_ssize_t>(text.size() - *pos), &code_point);
  if (used <= 0) return static_cast<unsigned char>(text[(*pos)++]);
  *pos += static_cast<size_t>(used);
  return static_cast<char32_t>(code_point);
}

void AppendUtf8(char32_t code_point, std::string* out) {
  utf8proc_uint8_t buffer[4];
  utf8proc_ssize_t size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code_point), buffer);
  out->append(reinterpret_cast<char*>(buffer), static_cast<size_t>(size));
}

std::vector<size_t> CodePointOffsets(std::string_view text) {
  std::vector<size_t> offsets;
  offsets.reserve(text.size() + 1);
  for (size_t pos = 0; pos < text.size();) {
    offsets.push_back(pos);
    NextCodePoint(text, &pos);
  }
  offsets.push_back(text.size());
  return offsets;
}

size_t CountCodePoints(std::string_view text) {
  size_t count = 0;
  for (size_t pos = 0; pos < text.size(); ++count) NextCodePoint(text, &pos);
  return count;
}

bool IsSpace(char32_t c) {
  return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f ||
         c == 0x3000;
}

bool IsValidUtf8(std::string_view text) {
  for (size_t pos = 0; pos < text.size();) {
    utf8proc_int32_t code_point = -1;
    utf8proc_ssize_t used =
        utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data() + pos),
                         static_cast<utf8proc_ssize_t>(text.size() - pos), &code_point);
    if (used <= 0) return false;
    pos += static_cast<size_t>(used);
  }
  return true;
}

namespace {

std::vector<char32_t> CodePoints(std::string_view text) {
  std::vector<char32_t> result;
  for (size_t pos = 0; pos < text.size();) result.push_back(NextCodePoint(text, &pos));
  return result;
}

size_t PreviousCodePoint(std::string_view text, size_t pos) {
  --pos;
  while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xc0) == 0x80) --pos;
  return pos;
}

}  // namespace

Text Strip(const Text& text, Side side, std::optional<std::string_view> chars) {
  std::vector<char32_t> set = chars ? CodePoints(*chars) : std::vector<char32_t>();
  auto drops = [&](char32_t c) {
    return chars ? std::find(set.begin(), set.end(), c) != set.end() : IsSpace(c);
  };
  std::string_view view = text.view();
  size_t begin = 0;
  size_t end = view.size();
  while (side != Side::kRight && begin < end) {
    size_t next = begin;
    if (!drops(NextCodePoint(view, &next))) break;
    begin = next;
  }
  while (side != Side::kLeft && end > begin) {
    size_t previous = PreviousCodePoint(view, end);
    size_t next = previous;
    if (!drops(NextCodePoint(view, &next))) break;
    end = previous;
  }
  return text.Slice(begin, end);
}

size_t CountOccurrences(std::string_view text, std::string_view needle) {
  size_t count = 0;
  if (needle.empty()) return CountCodePoints(text) + 1;
  for (size_t at = text.find(needle); at != std::string_view::npos;
       at = text.find(needle, at + needle.size())) {
    ++count;
  }
  return count;
}

Text Replace(const Text& text, std::string_view from, const Text& to, int64_t count) {
  Text result;
  size_t begin = 0;
  for (int64_t done = 0; count < 0 || done < count; ++done) {
    size_t at = text.view().find(from, begin);
    if (at == std::string_view::npos) break;
    result.AppendSlice(text, begin, at);
    if (text.FromTemplate(at, at + from.size())) {
      result.Append(to);
    } else {
      result.Append(to.view(), Origin::kUser);
    }
    begin = at + from.size();
  }
  result.AppendSlice(text, begin, text.size());
  return result;
}

namespace {

using Range = std::pair<size_t, size_t>;

// Maximal stretches of non-space, at most limit + 1: the last (or, from the right, the first)
// keeps what is left.
std::vector<Range> SpaceSplit(std::string_view view, const SplitOptions& options) {
  std::vector<Range> words;
  size_t word = 0;
  bool inside = false;
  for (size_t pos = 0; pos < view.size();) {
    size_t at = pos;
    bool space = IsSpace(NextCodePoint(view, &pos));
    if (space && inside) words.push_back({word, at});
    if (!space && !inside) word = at;
    inside = !space;
  }
  if (inside) words.push_back({word, view.size()});
  if (options.limit < 0 || words.size() <= static_cast<size_t>(options.limit) + 1) return words;
  size_t limit = static_cast<size_t>(options.limit);
  size_t end = view.size();
  if (!options.from_right) {
    words[limit].second = end;
    words.resize(limit + 1);
    return words;
  }
  size_t first = words.size() - limit;
  words[first - 1].first = words[0].first;
  words.erase(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(first) - 1);
  return words;
}

std::vector<Range> SeparatorSplit(std::string_view view, const SplitOptions& options) {
  std::vector<Range> parts;
  std::string_view separator = *options.separator;
  auto more = [&] {
    return options.limit < 0 || parts.size() < static_cast<size_t>(options.limit);
  };
  if (!options.from_right) {
    size_t begin = 0;
    for (size_t at; more() && (at = view.find(separator, begin)) != std::string_view::npos;) {
      parts.push_back({begin, at});
      begin = at + separator.size();
    }
    parts.push_back({begin, view.size()});
    return parts;
  }
  size_t end = view.size();
  while (more() && end >= separator.size()) {
    size_t at = view.rfind(separator, end - separator.size());
    if (at == std::string_view::npos) break;
    parts.push_back({at + separator.size(), end});
    end = at;
  }
  parts.push_back({0, end});
  std::reverse(parts.begin(), parts.end());
  return parts;
}

}  // namespace

std::vector<Text> Split(const Text& text, const SplitOptions& options) {
  std::vector<Range> ranges =
      options.separator ? SeparatorSplit(text.view(), options) : SpaceSplit(text.view(), options);
  std::vector<Text> parts;
  parts.reserve(ranges.size());
  for (const Range& range : ranges) parts.push_back(text.Slice(range.first, range.second));
  return parts;
}

std::vector<Text> SplitLines(const Text& text) {
  std::vector<Text> lines;
  std::string_view view = text.view();
  size_t begin = 0;
  while (begin < view.size()) {
    size_t end = std::min(view.find_first_of("\r\n", begin), view.size());
    lines.push_back(text.Slice(begin, end));
    bool both = end + 1 < view.size() && view[end] == '\r' && view[end + 1] == '\n';
    begin = end + (both ? 2 : 1);
  }
  return lines;
}

Text ChangeCase(const Text& text, Case to) {
  Text result;
  bool word_start = true;
  for (size_t pos = 0; pos < text.size();) {
    size_t at = pos;
    auto c = static_cast<utf8proc_int32_t>(NextCodePoint(text.view(), &pos));
    bool upper = to == Case::kUpper || (word_start && to != Case::kLower);
    utf8proc_int32_t changed = upper ? utf8proc_toupper(c) : utf8proc_tolower(c);
    utf8proc_category_t category = utf8proc_category(c);
    bool letter = category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
    word_start = to == Case::kTitle && !letter;
    std::string bytes;
    AppendUtf8(static_cast<char32_t>(changed), &bytes);
    result.Append(bytes, text.FromTemplate(at, pos) ? Origin::kTemplate : Origin::kUser);
  }
  return result;
}

}  // namespace cadre::jinja
