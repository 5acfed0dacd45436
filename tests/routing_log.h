// Which experts every token of a training run was given, and by how much they were chosen before
// others: mixtures amplify rounding only where two experts are as good as equal.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "model/decoder.h"

namespace cadre::testing_run {

struct ExpertChoice {
  std::vector<int32_t> experts;  // ascending
  std::vector<double> scores;    // of all experts: what they were chosen by
};

// By step and layer: of the step's tokens, in their order. Ranks that have a token's copy write the
// same.
using RoutingLog = std::map<std::pair<int64_t, int>, std::vector<ExpertChoice>>;
void LogRouting(const DecoderSpec& spec, int64_t step, const RoutedTokens& routed, RoutingLog* log);

// The first step and layer in which two runs choose differently, -1 where none does. Up to there
// they computed the same, so every choice that differs there must have been a close one.
struct RoutingSplit {
  int64_t step = -1;
  int layer = -1;
  int64_t token = -1;  // the one with the largest gap,
  double gap = 0;      // by which what `expected` chose there scored above what `got` chose
};
// An infinite gap: the runs have not routed the same tokens.
RoutingSplit FirstSplit(const DecoderSpec& spec, const RoutingLog& expected, const RoutingLog& got);

}  // namespace cadre::testing_run
