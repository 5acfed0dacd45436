// The decoders of a tokenizer file, reduced to a form that works token by token: the text of each
// token by itself, and what happens at the start of the whole text.
#pragma once

#include <absl/status/statusor.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer_regex.h"

namespace cadre {

struct JsonNode;

// Immutable.
class TokenDecoder {
 public:
  // Without decoder in the file: byte-level models are read as bytes, others joined by spaces.
  explicit TokenDecoder(bool byte_level) : byte_level_(byte_level), joins_words_(!byte_level) {}

  // ByteLevel, ByteFallback, Metaspace, Replace, Fuse, Strip and Sequences of them, where each part
  // but Strip at the start of the text acts on single tokens (kUnimplemented otherwise).
  static absl::StatusOr<TokenDecoder> Parse(const JsonNode& node);

  // The bytes that `token`, as the file writes it, stands for. `added`: it is an added token.
  // `first`: it is the first of a text.
  std::string Bytes(std::string_view token, bool added, bool first, RegexScratch& scratch) const;

  // Whether Bytes depends on `first`.
  bool first_differs() const { return first_differs_; }
  // Whether one space stands between tokens.
  bool joins_words() const { return joins_words_; }
  // Up to this many `stripped()` are dropped at the start of a text.
  size_t strip_left() const { return strip_left_; }
  const std::string& stripped() const { return stripped_; }

 private:
  enum class Kind { kReplace, kStrip, kMetaspace };
  struct Step {
    Kind kind;
    std::string pattern;  // kStrip and kMetaspace: the character
    std::string content;
    std::optional<Regex> regex;
    size_t left = 0, right = 0;
    bool drop_at_start = false;
  };

  absl::Status AddStep(const JsonNode& node, std::string_view type);
  absl::Status AddStrip(const JsonNode& node);
  absl::Status AddMetaspace(const JsonNode& node);

  std::vector<Step> steps_;
  bool byte_level_ = false;
  bool byte_fallback_ = false;
  bool fused_ = false;
  bool first_differs_ = false;
  bool joins_words_ = false;
  size_t strip_left_ = 0;
  std::string stripped_;
};

}  // namespace cadre
