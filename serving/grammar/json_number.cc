#include "serving/grammar/json_number.h"

#include <algorithm>

namespace cadre {
namespace {

constexpr int64_t kLargest = 9'999'999'999'999'999;  // every parser takes 16 digits
constexpr size_t kMaxFraction = 16;

NodeId Digits(Grammar& g, char first, char last) {
  return g.Class({{static_cast<uint32_t>(first), static_cast<uint32_t>(last)}});
}

// Digit strings of one length, from `low` to `high`.
NodeId SameLength(Grammar& g, std::string_view low, std::string_view high) {
  if (low.empty()) return g.Sequence({});
  if (low[0] == high[0]) {
    return g.Sequence({g.Bytes(low.substr(0, 1)), SameLength(g, low.substr(1), high.substr(1))});
  }
  const auto rest = static_cast<int64_t>(low.size()) - 1;
  const std::string nines(low.size() - 1, '9'), zeros(low.size() - 1, '0');
  std::vector<NodeId> choices;
  char first = low[0], last = high[0];
  if (low.substr(1) != zeros) {
    choices.push_back(g.Sequence({g.Bytes(low.substr(0, 1)), SameLength(g, low.substr(1), nines)}));
    ++first;
  }
  if (high.substr(1) != nines) {
    choices.push_back(
        g.Sequence({g.Bytes(high.substr(0, 1)), SameLength(g, zeros, high.substr(1))}));
    --last;
  }
  if (first <= last) {
    choices.push_back(
        g.Sequence({Digits(g, first, last), g.Repeat(Digits(g, '0', '9'), rest, rest)}));
  }
  return g.Choice(std::move(choices));
}

// Whole numbers without sign, from `low` to `high`.
NodeId Whole(Grammar& g, int64_t low, int64_t high) {
  std::vector<NodeId> choices;
  for (int64_t first = low; first <= high;) {
    const std::string text = std::to_string(first);
    int64_t longest = 9;  // of as many digits
    for (size_t i = 1; i < text.size(); ++i) longest = longest * 10 + 9;
    const int64_t last = std::min(high, longest);
    choices.push_back(SameLength(g, text, std::to_string(last)));
    first = last + 1;
  }
  return g.Choice(std::move(choices));
}

// What may stand behind the whole part: nothing, or a point and digits, between two fractions.
class FractionWriter {
 public:
  struct Ends {
    const DecimalBound* low = nullptr;  // null: no bound here
    const DecimalBound* high = nullptr;
  };
  FractionWriter(Grammar& g, Ends ends) : g_(g), ends_(ends) {}

  NodeId Write() {
    const bool low = ends_.low != nullptr, high = ends_.high != nullptr;
    const NodeId digits = g_.Sequence({g_.Bytes("."), From(0, low, high, true)});
    return MayStop(0, low, high) ? g_.Optional(digits) : digits;
  }

 private:
  static char DigitAt(const DecimalBound& bound, size_t i) {
    return i < bound.fraction.size() ? bound.fraction[i] : '0';
  }
  // Whether the digits may end before place i, where all so far are those of the tight bounds.
  bool MayStop(size_t i, bool low, bool high) const {
    if (low && (i < ends_.low->fraction.size() || ends_.low->exclusive)) return false;
    // Zeros follow: equal to the upper bound only where that has ended.
    return !high || i < ends_.high->fraction.size() || !ends_.high->exclusive;
  }
  NodeId From(size_t i, bool low, bool high, bool needs_one) {
    const auto left = static_cast<int64_t>(kMaxFraction - i);
    if (!low && !high) return g_.Repeat(g_.Class({{'0', '9'}}), needs_one ? 1 : 0, left);
    std::vector<NodeId> choices;
    if (!needs_one && MayStop(i, low, high)) choices.push_back(g_.Sequence({}));
    const char least = low ? DigitAt(*ends_.low, i) : '0';
    const char most = high ? DigitAt(*ends_.high, i) : '9';
    for (char digit = least; i < kMaxFraction && digit <= most; ++digit) {
      const NodeId rest = From(i + 1, low && digit == least, high && digit == most, false);
      choices.push_back(g_.Sequence({g_.Bytes(std::string(1, digit)), rest}));
    }
    return g_.Choice(std::move(choices));
  }

  Grammar& g_;
  const Ends ends_;
};

// Numbers without sign between two bounds without sign.
NodeId Magnitude(Grammar& g, const DecimalBound& low, const DecimalBound& high) {
  std::vector<NodeId> choices;
  auto add = [&](int64_t first, int64_t last, FractionWriter::Ends ends) {
    if (first > last) return;
    choices.push_back(g.Sequence({Whole(g, first, last), FractionWriter(g, ends).Write()}));
  };
  if (low.whole == high.whole) {
    if (low.fraction <= high.fraction) add(low.whole, low.whole, {.low = &low, .high = &high});
  } else if (low.whole < high.whole) {
    add(low.whole, low.whole, {.low = &low});
    add(low.whole + 1, high.whole - 1, {});
    add(high.whole, high.whole, {.high = &high});
  }
  return g.Choice(std::move(choices));
}

DecimalBound WithoutSign(DecimalBound bound) {
  bound.negative = false;
  return bound;
}

// The sides of zero, each as bounds on the magnitude.
struct Sides {
  std::optional<std::pair<DecimalBound, DecimalBound>> below, above;
};

Sides SidesOf(const NumberBounds& bounds) {
  const DecimalBound zero, largest{.whole = kLargest, .fraction = std::string(kMaxFraction, '9')};
  Sides sides;
  const bool low_below = !bounds.low || bounds.low->negative;
  const bool high_below = bounds.high && bounds.high->negative;
  if (low_below) {
    sides.below = {high_below ? WithoutSign(*bounds.high) : zero,
                   bounds.low ? WithoutSign(*bounds.low) : largest};
    // -0 is zero: no less than an upper bound of zero that is excluded.
    if (bounds.high && !high_below && bounds.high->whole == 0 && bounds.high->fraction.empty()) {
      sides.below->first.exclusive = bounds.high->exclusive;
    }
  }
  if (!high_below) {
    sides.above = {low_below ? zero : *bounds.low, bounds.high.value_or(largest)};
  }
  return sides;
}

NodeId WholeSide(Grammar& g, const std::pair<DecimalBound, DecimalBound>& side, int64_t least) {
  const auto& [low, high] = side;
  const bool up = !low.fraction.empty() || low.exclusive;
  const bool down = high.fraction.empty() && high.exclusive;
  return Whole(g, std::max(least, low.whole + (up ? 1 : 0)), high.whole - (down ? 1 : 0));
}

}  // namespace

absl::StatusOr<DecimalBound> DecimalBound::Parse(const std::string& text, bool exclusive) {
  DecimalBound bound{.exclusive = exclusive};
  size_t at = 0;
  if (!text.empty() && text[0] == '-') {
    bound.negative = true;
    ++at;
  }
  size_t digits = 0;
  for (; at < text.size() && std::isdigit(static_cast<uint8_t>(text[at])) && digits < 17; ++at) {
    bound.whole = bound.whole * 10 + (text[at] - '0');
    ++digits;
  }
  if (at < text.size() && text[at] == '.') {
    bound.fraction = text.substr(at + 1);
    while (bound.fraction.ends_with('0')) bound.fraction.pop_back();
    at = text.size();
  }
  const bool plain = bound.fraction.find_first_not_of("0123456789") == std::string::npos;
  if (at != text.size() || digits > 16 || bound.fraction.size() >= kMaxFraction || !plain) {
    return InvalidArgument("the bound {} has more than 16 digits before the point or 15 behind it",
                           text);
  }
  if (bound.whole == 0 && bound.fraction.empty()) bound.negative = false;
  return bound;
}

NodeId IntegerBetween(Grammar& g, const NumberBounds& bounds) {
  const Sides sides = SidesOf(bounds);
  std::vector<NodeId> choices;
  if (sides.below) choices.push_back(g.Sequence({g.Bytes("-"), WholeSide(g, *sides.below, 1)}));
  if (sides.above) choices.push_back(WholeSide(g, *sides.above, 0));
  return g.Choice(std::move(choices));
}

NodeId NumberBetween(Grammar& g, const NumberBounds& bounds) {
  const Sides sides = SidesOf(bounds);
  std::vector<NodeId> choices;
  if (sides.below) {
    choices.push_back(
        g.Sequence({g.Bytes("-"), Magnitude(g, sides.below->first, sides.below->second)}));
  }
  if (sides.above) choices.push_back(Magnitude(g, sides.above->first, sides.above->second));
  return g.Choice(std::move(choices));
}

}  // namespace cadre
