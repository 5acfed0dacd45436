// Patterns of tokenizer files, run by PCRE2 (UTF, UCP, JIT). They are written for Oniguruma; where
// the two read the same text differently the pattern is translated first (white space, word
// characters, \uHHHH, lines).
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace cadre {

// Working memory for matching: of one thread at a time, reused over patterns and texts.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

// Immutable; any number of threads may match at once, each with its own scratch.
class Regex {
 public:
  // kInvalidArgument starting with `where` when the pattern does not compile.
  static absl::StatusOr<Regex> Compile(std::string_view pattern, const std::string& where);

  // Finds the first match in valid UTF-8 at or after byte `from`, a character border. A pattern
  // that exceeds its match limit finds nothing: a slow pattern costs bounded time and a coarser
  // split.
  bool Find(std::string_view text, size_t from, RegexScratch& scratch, size_t* begin,
            size_t* end) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code);
  std::shared_ptr<const Code> code_;
};

}  // namespace cadre
