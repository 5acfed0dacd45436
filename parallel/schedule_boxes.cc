#include "parallel/schedule_boxes.h"

#include <algorithm>

namespace cadre {
namespace {

const BoxStyle* StyleOf(ActionKind kind) {
  for (const BoxStyle& style : BoxStyles()) {
    if (style.kind == kind) return &style;
  }
  return nullptr;
}

// "b" for the rank's second stage, "" where it has one alone.
std::string StageLetter(int place, int stages_per_rank) {
  if (stages_per_rank == 1) return "";
  return place < 26 ? std::string(1, static_cast<char>('a' + place)) : fmt::format(".{}", place);
}

std::string LabelOf(const Action& action, char letter, int place, int stages_per_rank) {
  std::string label(1, letter);
  if (action.microbatch >= 0) label += std::to_string(action.microbatch);
  if (action.stage >= 0) label += StageLetter(place, stages_per_rank);
  return label;
}

}  // namespace

std::span<const BoxStyle> BoxStyles() {
  static constexpr BoxStyle kStyles[] = {
      {ActionKind::kForward, 'F', "forward", "f", "48;5;25;38;5;231", "#1f5fa8", "#7db4f0"},
      {ActionKind::kBackward, 'B', "backward", "b", "48;5;28;38;5;231", "#2a7a3b", "#86cf93"},
      {ActionKind::kBackwardInput, 'I', "gradient of the input", "i", "48;5;30;38;5;231", "#0f7480",
       "#6fcbd6"},
      {ActionKind::kBackwardWeight, 'W', "gradient of the weights", "w", "48;5;130;38;5;231",
       "#a65300", "#f2ae6b"},
      {ActionKind::kOverlappedPair, 'P', "forward beside a backward", "p", "48;5;91;38;5;231",
       "#7b3fa0", "#cfa0ea"},
      {ActionKind::kRecompute, 'R', "recomputed forward", "r", "48;5;61;38;5;231", "#5757a6",
       "#b3b3f0"},
      {ActionKind::kUnshard, 'U', "unshard", "u", "48;5;240;38;5;231", "#5c5c5c", "#bdbdbd"},
      {ActionKind::kReduceGradient, 'G', "reduce gradients", "g", "48;5;125;38;5;231", "#a32260",
       "#ee93bd"},
      {ActionKind::kOptimizer, 'O', "optimizer", "o", "48;5;237;38;5;231", "#3d3d3d", "#dedede"},
  };
  return kStyles;
}

std::vector<Box> BoxesOf(const Schedule& schedule, const Simulation& simulation, int rank) {
  const ScheduleSpec& spec = schedule.spec;
  std::vector<int> place(spec.stages(), -1);
  for (int stage = 0, next = 0; stage < spec.stages(); ++stage) {
    if (RankOfStage(spec, stage) == rank) place[stage] = next++;
  }
  std::vector<Box> boxes;
  for (size_t i = 0; i < schedule.ranks[rank].size(); ++i) {
    const Action& action = schedule.ranks[rank][i];
    const Span span = simulation.ranks[rank].spans[i];
    const BoxStyle* style = StyleOf(action.kind);
    if (style == nullptr || span.end <= span.start) continue;
    const int at = action.stage >= 0 ? place[action.stage] : 0;
    boxes.push_back({.style = style,
                     .span = span,
                     .label = LabelOf(action, style->letter, at, spec.stages_per_rank),
                     .place = at,
                     .action = &action});
  }
  return boxes;
}

std::vector<const BoxStyle*> StylesOf(const std::vector<std::vector<Box>>& ranks) {
  std::vector<const BoxStyle*> styles;
  for (const BoxStyle& style : BoxStyles()) {
    const auto occurs = [&](const std::vector<Box>& boxes) {
      return std::any_of(boxes.begin(), boxes.end(),
                         [&](const Box& box) { return box.style == &style; });
    };
    if (std::any_of(ranks.begin(), ranks.end(), occurs)) styles.push_back(&style);
  }
  return styles;
}

}  // namespace cadre
