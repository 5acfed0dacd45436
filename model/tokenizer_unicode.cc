#include "model/tokenizer_unicode.h"

#include <utf8proc.h>

#include <cstring>

#include "model/tokenizer.h"

namespace cadre {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

struct LeadRule {
  uint8_t size;       // 0: never a lead
  uint8_t low, high;  // allowed second byte
};

LeadRule RuleOf(unsigned char lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {2, 0x80, 0xBF};
  if (lead == 0xE0) return {3, 0xA0, 0xBF};
  if (lead == 0xED) return {3, 0x80, 0x9F};
  if (lead >= 0xE1 && lead <= 0xEF) return {3, 0x80, 0xBF};
  if (lead == 0xF0) return {4, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {4, 0x80, 0xBF};
  if (lead == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Offset of the first byte of `text` at or after `from` that is not ASCII.
size_t SkipAscii(std::string_view text, size_t from) {
  while (from + 8 <= text.size()) {
    uint64_t word;
    std::memcpy(&word, text.data() + from, 8);
    if (word & 0x8080808080808080ull) break;
    from += 8;
  }
  while (from < text.size() && static_cast<unsigned char>(text[from]) < 0x80) ++from;
  return from;
}

bool InRange(char32_t c, char32_t low, char32_t high) { return c >= low && c <= high; }

}  // namespace

Utf8Part NextUtf8Part(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return {1, true, false};
  const LeadRule rule = RuleOf(byte(0));
  if (rule.size == 0) return {1, false, false};
  for (size_t i = 1; i < rule.size; ++i) {
    if (i == text.size()) return {i, false, true};
    const unsigned char low = i == 1 ? rule.low : 0x80, high = i == 1 ? rule.high : 0xBF;
    if (byte(i) < low || byte(i) > high) return {i, false, false};
  }
  return {rule.size, true, false};
}

char32_t DecodeChar(const char* text, size_t* size) {
  const auto* s = reinterpret_cast<const unsigned char*>(text);
  *size = CharSize(s[0]);
  switch (*size) {
    case 1:
      return s[0];
    case 2:
      return (s[0] & 0x1F) << 6 | (s[1] & 0x3F);
    case 3:
      return (s[0] & 0x0F) << 12 | (s[1] & 0x3F) << 6 | (s[2] & 0x3F);
    default:
      return (s[0] & 0x07) << 18 | (s[1] & 0x3F) << 12 | (s[2] & 0x3F) << 6 | (s[3] & 0x3F);
  }
}

void AppendChar(char32_t c, std::string* out) {
  const auto put = [&](char32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6), put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12), put(0x80 | (c >> 6 & 0x3F)), put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18), put(0x80 | (c >> 12 & 0x3F)), put(0x80 | (c >> 6 & 0x3F)),
        put(0x80 | (c & 0x3F));
  }
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t i = SkipAscii(text, 0);
  while (i < text.size()) {
    const Utf8Part part = NextUtf8Part(text.substr(i));
    if (!part.valid) return i;
    i = SkipAscii(text, i + part.size);
  }
  return i;
}

bool IsValidUtf8(std::string_view text) { return ValidUtf8Prefix(text) == text.size(); }

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const Utf8Part part = NextUtf8Part(text.substr(i));
    out += part.valid ? text.substr(i, part.size) : kReplacement;
    i += part.size;
  }
  return out;
}

bool IsWhitespace(char32_t c) {
  if (c < 0x80) return c == ' ' || InRange(c, 9, 13);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || InRange(c, 0x2000, 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsNumeric(char32_t c) {
  if (c < 0x80) return InRange(c, '0', '9');
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) {
    return InRange(c, '!', '/') || InRange(c, ':', '@') || InRange(c, '[', '`') ||
           InRange(c, '{', '~');
  }
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool IsWordChar(char32_t c) {
  if (c < 0x80) {
    return InRange(c, 'a', 'z') || InRange(c, 'A', 'Z') || InRange(c, '0', '9') || c == '_';
  }
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_NL) return true;
  if (category == UTF8PROC_CATEGORY_PC) return true;
  // Join_Control, and the symbols that Unicode calls alphabetic (circled and squared letters).
  return c == 0x200C || c == 0x200D || InRange(c, 0x24B6, 0x24E9) || InRange(c, 0x1F130, 0x1F149) ||
         InRange(c, 0x1F150, 0x1F169) || InRange(c, 0x1F170, 0x1F189);
}

ByteAlphabet::ByteAlphabet() {
  to_byte_.fill(-1);
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = InRange(byte, '!', '~') || InRange(byte, 0xA1, 0xAC) || byte >= 0xAE;
    to_char_[byte] = printable ? byte : next++;
    to_byte_[to_char_[byte]] = static_cast<int16_t>(byte);
  }
}

std::optional<std::string> ByteAlphabet::ToBytes(std::string_view token) const {
  std::string bytes;
  for (size_t i = 0, size = 0; i < token.size(); i += size) {
    const char32_t c = DecodeChar(token.data() + i, &size);
    if (c >= to_byte_.size() || to_byte_[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(to_byte_[c]));
  }
  return bytes;
}

std::string ByteAlphabet::FromBytes(std::string_view bytes) const {
  std::string token;
  for (const char byte : bytes) AppendChar(to_char_[static_cast<unsigned char>(byte)], &token);
  return token;
}

}  // namespace cadre
