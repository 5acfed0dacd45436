// Regular expressions as grammars.
//
// Supported: literals; `.` (anything but a line break); classes [a-z], [^...] with the escapes
// below inside; groups (...), (?:...), (?<name>...), (?P<name>...), none of which captures; |; * +
// ? {m} {m,} {m,n}, each also lazy, which changes no language; ^ and $ at the ends of the
// expression or of an alternative outside groups; \d \w \s \D \W \S (ASCII), \t \n \r \f \v \0,
// \xHH, \uHHHH, \u{H...}, and \ before punctuation. Refused by name: back-references, look-around,
// \b and other anchors, \p, possessive quantifiers, inline flags.
#pragma once

#include <string_view>

#include "serving/grammar/grammar.h"

namespace cadre {

struct RegexOptions {
  // Where the expression has no ^ or $, more text may stand before or behind it, as in JSON
  // Schema's "pattern"; otherwise it is the whole text.
  bool search = false;
  // The text is the inside of a JSON string: what must be escaped there comes escaped.
  bool json_string = false;
};

// Adds the expression's nodes to `grammar`. kInvalidArgument names the place and what is wrong.
absl::StatusOr<NodeId> AddRegex(std::string_view pattern, const RegexOptions& options,
                                const GrammarLimits& limits, Grammar& grammar);

// The texts that the whole expression matches.
absl::StatusOr<Grammar> ParseRegex(std::string_view pattern, const GrammarLimits& limits = {});

}  // namespace cadre
