// UTF-8 and character classes for the tokenizer: the classes are those of the Rust libraries behind
// Hugging Face's `tokenizers`, since vocabularies were trained with them.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cadre {

// Bytes of the maximal well-formed or, where `*valid` turns false, maximal broken part (at least 1)
// at the start of a non-empty `text` (Unicode 15, table 3-7; what decoders replace by one U+FFFD).
// `*truncated`: the part is a proper prefix of a character and reaches the end of the text.
struct Utf8Part {
  size_t size = 0;
  bool valid = false;
  bool truncated = false;
};
Utf8Part NextUtf8Part(std::string_view text);

// The character at the start of non-empty valid UTF-8, and its size in bytes.
char32_t DecodeChar(const char* text, size_t* size);
void AppendChar(char32_t c, std::string* out);

// Bytes of the character that starts with `lead`, for valid UTF-8.
inline size_t CharSize(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

// `text` with U+FFFD for each broken part.
std::string ReplaceInvalidUtf8(std::string_view text);

bool IsWhitespace(char32_t c);   // White_Space
bool IsNumeric(char32_t c);      // Nd, Nl, No
bool IsPunctuation(char32_t c);  // ASCII punctuation and P*
bool IsWordChar(char32_t c);     // \w: Alphabetic, M, Nd, Pc, Join_Control

// GPT-2's alphabet: one printable character per byte.
class ByteAlphabet {
 public:
  ByteAlphabet();
  char32_t ToChar(unsigned char byte) const { return to_char_[byte]; }
  // `token` as the bytes that its characters stand for; nullopt when one is not of the alphabet.
  std::optional<std::string> ToBytes(std::string_view token) const;
  std::string FromBytes(std::string_view bytes) const;

 private:
  std::array<char32_t, 256> to_char_;
  std::array<int16_t, 0x200> to_byte_;  // -1: none
};

}  // namespace cadre
