// Numbers between bounds, as grammars over their decimal digits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "serving/grammar/grammar.h"

namespace cadre {

// A bound in decimal digits: [-]whole[.fraction].
struct DecimalBound {
  bool negative = false;
  int64_t whole = 0;     // below 10^16
  std::string fraction;  // digits behind the point; no trailing zeros
  bool exclusive = false;

  // From a JSON number's text. kInvalidArgument: 10^16 or more, or digits beyond 16.
  static absl::StatusOr<DecimalBound> Parse(const std::string& text, bool exclusive);
};

struct NumberBounds {
  std::optional<DecimalBound> low, high;
};

// JSON integers, or numbers without exponent, between the bounds; at most 16 digits before the
// point and behind it. Matches nothing where there is no such number.
NodeId IntegerBetween(Grammar& g, const NumberBounds& bounds);
NodeId NumberBetween(Grammar& g, const NumberBounds& bounds);

}  // namespace cadre
