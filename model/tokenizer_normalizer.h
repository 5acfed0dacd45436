// The normalizers of a tokenizer file: what is done to text before it is split.
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
class Normalizer {
 public:
  Normalizer() = default;
  // NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip and Sequences of them.
  static absl::StatusOr<Normalizer> Parse(const JsonNode& node);

  // Normalizes valid UTF-8 in place; `spare` is overwritten.
  void Apply(RegexScratch& scratch, std::string* text, std::string* spare) const;

  bool empty() const { return steps_.empty(); }

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kLowercase, kPrepend, kReplace, kStrip };
  struct Step {
    Kind kind;
    std::string pattern;  // kReplace without a regex
    std::string content;  // kReplace, kPrepend
    std::optional<Regex> regex;
    bool left = false, right = false;  // kStrip
  };

  static absl::StatusOr<Step> ParseStep(const JsonNode& node, std::string_view type);
  static void ApplyStep(const Step& step, RegexScratch& scratch, std::string* text,
                        std::string* spare);

  std::vector<Step> steps_;
};

// `text` with each match of `regex` (or, without one, of the non-empty `pattern`) replaced.
void ReplaceAll(std::string_view text, const std::optional<Regex>& regex, std::string_view pattern,
                std::string_view content, RegexScratch& scratch, std::string* out);

// Reads {"String": s} or {"Regex": s}, as Replace and Split write their pattern.
absl::Status ParsePattern(const JsonNode& node, std::string* pattern, std::optional<Regex>* regex);

}  // namespace cadre
