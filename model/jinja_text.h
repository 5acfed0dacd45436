// A string that remembers, byte by byte, whether it came from the template or from the caller's
// values, so that a special token spelled by a user is never taken for the template's own.
//
// The rule is conservative: whatever is derived from a user value is the user's. Slicing and
// appending keep each byte's origin; a replacement is the template's only where what it replaces
// was; conversions (numbers, JSON) are the user's. Values are immutable once shared; no
// synchronization inside. Text is UTF-8; lengths and indices of templates count code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace cadre::jinja {

enum class Origin : uint8_t { kUser, kTemplate };

class Text {
 public:
  // Bytes from the previous run's end (or 0) to `end` share one origin.
  struct Run {
    size_t end;
    Origin origin;
  };

  Text() = default;
  Text(std::string bytes, Origin origin);

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  const std::vector<Run>& runs() const { return runs_; }

  void Append(std::string_view bytes, Origin origin);
  void Append(const Text& other);
  // Appends other[begin, end) with its origins.
  void AppendSlice(const Text& other, size_t begin, size_t end);

  // Bytes [begin, end), clamped to the size.
  Text Slice(size_t begin, size_t end) const;
  // Whether every byte of [begin, end) came from the template; true when empty.
  bool FromTemplate(size_t begin, size_t end) const;

 private:
  std::string bytes_;
  std::vector<Run> runs_;
};

// Decodes the code point at text[*pos] and moves *pos past it; a malformed byte stands for itself.
char32_t NextCodePoint(std::string_view text, size_t* pos);
void AppendUtf8(char32_t code_point, std::string* out);
// Byte offset of every code point, and the size at the end.
std::vector<size_t> CodePointOffsets(std::string_view text);
size_t CountCodePoints(std::string_view text);
bool IsSpace(char32_t code_point);  // as Python's str.isspace
bool IsValidUtf8(std::string_view text);

enum class Side { kLeft, kRight, kBoth };
// Python's strip: of white space, or of any of `chars`.
Text Strip(const Text& text, Side side, std::optional<std::string_view> chars);

// Python's replace of at most `count` places (negative: all). `from` is not empty.
Text Replace(const Text& text, std::string_view from, const Text& to, int64_t count);
size_t CountOccurrences(std::string_view text, std::string_view needle);

// Python's split; no separator splits at white space. `limit` < 0: no limit. `from_right`: rsplit.
struct SplitOptions {
  std::optional<std::string_view> separator;
  int64_t limit = -1;
  bool from_right = false;
};
std::vector<Text> Split(const Text& text, const SplitOptions& options);
std::vector<Text> SplitLines(const Text& text);

enum class Case { kUpper, kLower, kTitle, kCapitalize };
Text ChangeCase(const Text& text, Case to);

}  // namespace cadre::jinja
