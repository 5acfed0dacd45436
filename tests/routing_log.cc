#include "tests/routing_log.h"

#include <algorithm>
#include <limits>

#include "core/ops/topk_gate_rows.h"

namespace cadre::testing_run {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

const moe::RouterSpec& RouterOf(const DecoderSpec& spec, int layer) {
  return spec.layers[static_cast<size_t>(layer)].moe.router;
}

bool Holds(const std::vector<int32_t>& sorted, int32_t id) {
  return std::ranges::binary_search(sorted, id);
}

// What a group of experts is chosen by.
double GroupScore(const moe::RouterSpec& spec, const std::vector<double>& scores, int64_t group) {
  const int64_t size = spec.experts / spec.groups;
  std::vector<double> own(scores.begin() + group * size, scores.begin() + (group + 1) * size);
  std::ranges::sort(own, std::greater<>());
  return spec.kind == moe::RouterKind::kSigmoidBias && size > 1 ? own[0] + own[1] : own[0];
}

// How far the groups that `got` chose from lie below those that were to be chosen from.
double GroupGap(const moe::RouterSpec& spec, const ExpertChoice& expected,
                const ExpertChoice& got) {
  std::vector<double> groups;
  for (int64_t g = 0; g < spec.groups; ++g) {
    groups.push_back(GroupScore(spec, expected.scores, g));
  }
  std::vector<double> sorted = groups;
  std::ranges::sort(sorted, std::greater<>());
  const double least = sorted[static_cast<size_t>(spec.kept_groups) - 1];
  double gap = 0;
  for (const int32_t id : got.experts) {
    gap = std::max(gap, least - groups[static_cast<size_t>(id * spec.groups / spec.experts)]);
  }
  return gap;
}

double ChoiceGap(const moe::RouterSpec& spec, const ExpertChoice& expected,
                 const ExpertChoice& got) {
  if (expected.experts == got.experts) return 0;
  if (expected.experts.size() != got.experts.size()) return kInfinity;
  if (spec.groups > 1) {
    const double gap = GroupGap(spec, expected, got);
    if (gap > 0) return gap;
  }
  double best = -kInfinity, worst = kInfinity;
  for (const int32_t id : expected.experts) {
    if (!Holds(got.experts, id)) best = std::max(best, expected.scores[static_cast<size_t>(id)]);
  }
  for (const int32_t id : got.experts) {
    if (!Holds(expected.experts, id)) {
      worst = std::min(worst, expected.scores[static_cast<size_t>(id)]);
    }
  }
  return best - worst;
}

}  // namespace

void LogRouting(const DecoderSpec& spec, int64_t step, const RoutedTokens& routed,
                RoutingLog* log) {
  std::vector<ExpertChoice>& choices = (*log)[{step, routed.layer}];
  const auto kind = RouterOf(spec, routed.layer).kind;
  const auto score =
      kind == moe::RouterKind::kSigmoidBias ? ops::GateScore::kSigmoid : ops::GateScore::kSoftmax;
  const int64_t experts = routed.logits.dim(1), k = routed.ids.dim(1);
  for (int64_t t = 0; t < routed.tokens.numel(); ++t) {
    const auto token = static_cast<size_t>(routed.tokens.data<int64_t>()[t]);
    if (choices.size() <= token) choices.resize(token + 1);
    ExpertChoice& choice = choices[token];
    const int32_t* ids = routed.ids.data<int32_t>() + t * k;
    choice.experts.assign(ids, ids + k);
    choice.scores.resize(static_cast<size_t>(experts));
    VisitFloat(routed.logits.dtype(), [&]<typename T>(T) {
      std::vector<double> logits(routed.logits.data<T>() + t * experts,
                                 routed.logits.data<T>() + (t + 1) * experts);
      ops::GateScores<double>(score, logits.data(), experts, choice.scores.data());
      if (!routed.correction.defined()) return;
      for (int64_t e = 0; e < experts; ++e) {
        choice.scores[static_cast<size_t>(e)] +=
            static_cast<double>(routed.correction.data<T>()[e]);
      }
    });
  }
}

RoutingSplit FirstSplit(const DecoderSpec& spec, const RoutingLog& expected,
                        const RoutingLog& got) {
  if (expected.size() != got.size()) return {.step = 0, .gap = kInfinity};
  for (const auto& [place, choices] : expected) {
    const auto& [step, layer] = place;
    const auto found = got.find(place);
    if (found == got.end() || found->second.size() != choices.size()) {
      return {.step = step, .layer = layer, .gap = kInfinity};
    }
    RoutingSplit split;
    for (size_t t = 0; t < choices.size(); ++t) {
      if (choices[t].experts == found->second[t].experts) continue;
      const double gap = ChoiceGap(RouterOf(spec, layer), choices[t], found->second[t]);
      if (split.step >= 0 && gap <= split.gap) continue;
      split = {.step = step, .layer = layer, .token = static_cast<int64_t>(t), .gap = gap};
    }
    if (split.step >= 0) return split;
  }
  return {};
}

}  // namespace cadre::testing_run
