// A place in a text of characters, for the parsers of grammars and expressions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "serving/grammar/grammar.h"

namespace cadre {

class TextCursor {
 public:
  static constexpr uint32_t kEnd = UINT32_MAX;

  // `what` names the text in messages. kInvalidArgument: over the bound, or not UTF-8.
  static absl::StatusOr<TextCursor> Open(std::string what, std::string_view text,
                                         const GrammarLimits& limits);

  uint32_t peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : kEnd;
  }
  uint32_t Next() { return at_ < text_.size() ? text_[at_++] : kEnd; }
  bool done() const { return at_ >= text_.size(); }
  size_t at() const { return at_; }
  void GoTo(size_t at) { at_ = at; }
  // Steps over `text` where it comes next.
  bool Take(std::string_view text);

  // Up to 9 decimal digits; none where there is no digit or more of them.
  std::optional<int64_t> Number();
  // Exactly `digits` hexadecimal ones.
  std::optional<uint32_t> Hex(int digits);

  // "regular expression, line 1, column 7: ..."
  template <typename... Args>
  absl::Status Error(fmt::format_string<Args...> format, Args&&... args) const {
    return ErrorAt(at_, fmt::format(format, std::forward<Args>(args)...));
  }
  absl::Status ErrorAt(size_t at, const std::string& message) const;

 private:
  std::string what_;
  std::vector<uint32_t> text_;
  size_t at_ = 0;
};

// {m}, {m,}, {,n} and {m,n}, *, + and ?, where one of them comes next. max < 0: without end.
struct RepeatCounts {
  int64_t min = 0, max = -1;
};
absl::StatusOr<std::optional<RepeatCounts>> TakeRepeat(TextCursor& cursor);

}  // namespace cadre
