// What both drawings show of a schedule. Private to parallel/schedule*.cc.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/schedule_simulate.h"

namespace cadre {

// How a kind of action looks.
struct BoxStyle {
  ActionKind kind;
  char letter;
  std::string_view name;       // in the legend
  std::string_view css;        // class
  std::string_view ansi;       // background and foreground, 256 colours
  std::string_view fill;       // on a light page, with white text
  std::string_view dark_fill;  // on a dark one, with black text
};
std::span<const BoxStyle> BoxStyles();
// What the letters after a microbatch are, where a rank holds several stages.
inline constexpr std::string_view kStageLegend = "a, b: the rank's first, second stage";

// A computation that takes time.
struct Box {
  const BoxStyle* style;
  Span span;
  std::string label;  // "F3b"
  int place;          // of its stage on the rank, from 0
  const Action* action;
};
// Of one rank, in order. The schedule must outlive them.
std::vector<Box> BoxesOf(const Schedule& schedule, const Simulation& simulation, int rank);

// The styles that occur, in the order of BoxStyles.
std::vector<const BoxStyle*> StylesOf(const std::vector<std::vector<Box>>& ranks);

}  // namespace cadre
