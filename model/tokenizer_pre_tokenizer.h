// The pre-tokenizers of a tokenizer file: they cut text into the pieces that merges never cross.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer_regex.h"

namespace cadre {

struct JsonNode;

struct TextPiece {
  size_t begin = 0, end = 0;  // bytes
};

// A text while it is cut, and the memory that cutting needs; reused from text to text.
struct PreTokenizedText {
  std::string text;
  std::vector<TextPiece> pieces;
  std::string spare_text;
  std::vector<TextPiece> spare_pieces;
  struct Match {
    TextPiece at;
    bool is_match;
  };
  std::vector<Match> matches;
};

// Immutable.
class PreTokenizer {
 public:
  PreTokenizer() = default;
  // Split, ByteLevel, Digits, Punctuation, Metaspace, Whitespace, WhitespaceSplit and Sequences of
  // them; ByteLevel must come last.
  static absl::StatusOr<PreTokenizer> Parse(const JsonNode& node);

  // Cuts `work->text` (valid UTF-8, set by the caller), filling `work->pieces`. `at_start`: the
  // text stands at the start of the whole input, which matters to Metaspace's "first". The pieces
  // stay text: with byte_level() the model takes them byte by byte.
  void Apply(bool at_start, RegexScratch& scratch, PreTokenizedText* work) const;

  bool byte_level() const { return byte_level_; }

 private:
  enum class Kind { kRegex, kString, kCharClass, kWhitespaceWords, kPrefixSpace, kMetaspace };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kNever, kFirst };
  struct Step {
    Kind kind;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    std::optional<Regex> regex;
    std::string pattern;                   // kString; Metaspace's replacement
    bool (*in_class)(char32_t) = nullptr;  // kCharClass
    Prepend prepend = Prepend::kAlways;
    bool split = true;  // kMetaspace
  };

  absl::Status AddStep(const JsonNode& node, std::string_view type);
  absl::Status AddSplit(const JsonNode& node);
  absl::Status AddByteLevel(const JsonNode& node);
  absl::Status AddMetaspace(const JsonNode& node);

  static void FindMatches(const Step& step, std::string_view piece, RegexScratch& scratch,
                          PreTokenizedText* work);
  static void Split(const Step& step, RegexScratch& scratch, PreTokenizedText* work);
  static void Rewrite(const Step& step, bool at_start, PreTokenizedText* work);

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace cadre
