#include "serving/grammar/text_cursor.h"

#include "model/tokenizer.h"

namespace cadre {

absl::StatusOr<TextCursor> TextCursor::Open(std::string what, std::string_view text,
                                            const GrammarLimits& limits) {
  if (text.size() > limits.max_text_bytes) {
    return InvalidArgument("{}: {} bytes, allowed are {}", what, text.size(),
                           limits.max_text_bytes);
  }
  if (!IsValidUtf8(text)) return InvalidArgument("{}: not UTF-8", what);
  TextCursor cursor;
  cursor.what_ = std::move(what);
  for (char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if ((byte & 0xC0) == 0x80) {
      cursor.text_.back() = cursor.text_.back() << 6 | (byte & 0x3F);
    } else {
      cursor.text_.push_back(byte < 0x80   ? byte
                             : byte < 0xE0 ? byte & 0x1F
                             : byte < 0xF0 ? byte & 0x0F
                                           : byte & 0x07);
    }
  }
  return cursor;
}

bool TextCursor::Take(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    if (peek(i) != static_cast<uint8_t>(text[i])) return false;
  }
  at_ += text.size();
  return true;
}

std::optional<int64_t> TextCursor::Number() {
  int64_t value = 0;
  int digits = 0;
  for (; peek() >= '0' && peek() <= '9'; ++digits) {
    if (digits == 9) return std::nullopt;
    value = value * 10 + (Next() - '0');
  }
  return digits == 0 ? std::nullopt : std::optional(value);
}

std::optional<uint32_t> TextCursor::Hex(int digits) {
  uint32_t value = 0;
  for (int i = 0; i < digits; ++i) {
    const uint32_t c = peek();
    const bool decimal = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f';
    if (!decimal && !lower && !(c >= 'A' && c <= 'F')) return std::nullopt;
    value = value << 4 | (decimal ? c - '0' : lower ? c - 'a' + 10 : c - 'A' + 10);
    Next();
  }
  return value;
}

absl::Status TextCursor::ErrorAt(size_t at, const std::string& message) const {
  size_t line = 1, column = 1;
  for (size_t i = 0; i < at && i < text_.size(); ++i) {
    line += text_[i] == '\n';
    column = text_[i] == '\n' ? 1 : column + 1;
  }
  return InvalidArgument("{}, line {}, column {}: {}", what_, line, column, message);
}

absl::StatusOr<std::optional<RepeatCounts>> TakeRepeat(TextCursor& cursor) {
  if (cursor.Take("*")) return RepeatCounts{0, -1};
  if (cursor.Take("+")) return RepeatCounts{1, -1};
  if (cursor.Take("?")) return RepeatCounts{0, 1};
  const size_t begin = cursor.at();
  if (!cursor.Take("{")) return std::nullopt;
  const std::optional<int64_t> min = cursor.Number();
  RepeatCounts counts{min.value_or(0), min.value_or(0)};
  if (cursor.Take(",")) counts.max = cursor.Number().value_or(-1);
  const bool named = min.has_value() || counts.max >= 0;
  if (!cursor.Take("}") || !named) {
    return cursor.ErrorAt(begin, "a repetition is {m}, {m,} or {m,n}, of numbers below 10^9");
  }
  if (counts.max >= 0 && counts.max < counts.min) {
    return cursor.ErrorAt(begin, fmt::format("the repetition {{{},{}}} has its bounds exchanged",
                                             counts.min, counts.max));
  }
  return counts;
}

}  // namespace cadre
