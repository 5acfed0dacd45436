// The arithmetic of one row (token) of topk_gate.h, in float or double.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/ops/topk_gate.h"

namespace cadre::ops {

// Keeps the renormalization finite where all scores underflow; transformers adds the same.
inline constexpr double kGateEpsilon = 1e-20;

template <typename Real>
Real LogSumExpOf(const Real* x, int64_t n) {
  Real top = *std::max_element(x, x + n), sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(x[i] - top);
  return top + std::log(sum);
}

// Scores of the E experts: softmax or sigmoid.
template <typename Real>
void GateScores(GateScore kind, const Real* logits, int64_t experts, Real* scores) {
  if (kind == GateScore::kSigmoid) {
    for (int64_t e = 0; e < experts; ++e) scores[e] = Real(1) / (Real(1) + std::exp(-logits[e]));
    return;
  }
  Real top = *std::max_element(logits, logits + experts), sum = 0;
  for (int64_t e = 0; e < experts; ++e) sum += scores[e] = std::exp(logits[e] - top);
  for (int64_t e = 0; e < experts; ++e) scores[e] /= sum;
}

// The `count` best of choice[0, n), best first; the lower index on a tie.
template <typename Real>
void SelectBest(const std::vector<Real>& choice, int64_t count, std::vector<int32_t>& best) {
  best.resize(choice.size());
  for (size_t i = 0; i < best.size(); ++i) best[i] = static_cast<int32_t>(i);
  auto better = [&](int32_t a, int32_t b) {
    const Real x = choice[static_cast<size_t>(a)], y = choice[static_cast<size_t>(b)];
    if (std::isnan(x) || std::isnan(y)) {
      return std::isnan(x) == std::isnan(y) ? a < b : std::isnan(y);
    }
    return x != y ? x > y : a < b;
  };
  std::partial_sort(best.begin(), best.begin() + count, best.end(), better);
  best.resize(static_cast<size_t>(count));
}

// Scratch of one thread.
template <typename Real>
struct GateScratch {
  std::vector<Real> choice, group, grad;
  std::vector<int32_t> best;
};

// Experts outside the kept groups can no longer be chosen.
template <typename Real>
void LimitGroups(const TopKGateArgs& args, GateScratch<Real>& scratch) {
  const int64_t experts = static_cast<int64_t>(scratch.choice.size());
  const int64_t size = experts / args.groups;
  scratch.group.assign(static_cast<size_t>(args.groups), 0);
  for (int64_t g = 0; g < args.groups; ++g) {
    Real first = -std::numeric_limits<Real>::infinity(), second = first;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      const Real value = scratch.choice[e];
      if (value > first) {
        second = first;
        first = value;
      } else if (value > second) {
        second = value;
      }
    }
    scratch.group[g] =
        args.group_score == GroupScore::kTopTwoSum && size > 1 ? first + second : first;
  }
  SelectBest(scratch.group, args.kept_groups, scratch.best);
  std::sort(scratch.best.begin(), scratch.best.end());
  for (int64_t e = 0; e < experts; ++e) {
    if (!std::binary_search(scratch.best.begin(), scratch.best.end(),
                            static_cast<int32_t>(e / size))) {
      scratch.choice[e] = std::numeric_limits<Real>::quiet_NaN();
    }
  }
}

template <typename Real>
void ChooseExperts(const TopKGateArgs& args, const Real* scores, int64_t experts,
                   GateScratch<Real>& scratch, int32_t* ids) {
  scratch.choice.assign(scores, scores + experts);
  if (args.correction.defined()) {
    const Real* correction = args.correction.data<Real>();
    for (int64_t e = 0; e < experts; ++e) scratch.choice[e] += correction[e];
  }
  if (args.groups > 1) LimitGroups(args, scratch);
  SelectBest(scratch.choice, args.k, scratch.best);
  std::sort(scratch.best.begin(), scratch.best.end());
  std::copy(scratch.best.begin(), scratch.best.end(), ids);
}

template <typename Real>
Real SelectedSum(const Real* scores, const int32_t* ids, int64_t k) {
  Real sum = 0;
  for (int64_t j = 0; j < k; ++j) sum += scores[ids[j]];
  return sum + static_cast<Real>(kGateEpsilon);
}

template <typename Real>
void GateWeights(const TopKGateArgs& args, const Real* scores, const int32_t* ids, Real* weights) {
  const Real sum = args.renormalize ? SelectedSum(scores, ids, args.k) : Real(1);
  for (int64_t j = 0; j < args.k; ++j) {
    weights[j] = static_cast<Real>(args.scaling) * (scores[ids[j]] / sum);
  }
}

template <typename Real>
void GateProbs(GateScore kind, const Real* scores, int64_t experts, Real* probs) {
  Real sum = 0;
  for (int64_t e = 0; e < experts; ++e) sum += scores[e];
  for (int64_t e = 0; e < experts; ++e) {
    probs[e] = kind == GateScore::kSoftmax ? scores[e] : scores[e] / sum;
  }
}

template <typename Real>
struct GateRowGrad {
  const Real* scores;    // [E]
  const int32_t* ids;    // [k]
  const Real* dweights;  // [k] or null
  const Real* dprobs;    // [E] or null
  Real* dlogits;         // [E], written
};

template <typename Real>
void GateGradRow(const TopKGateArgs& args, const GateRowGrad<Real>& row, int64_t experts,
                 std::vector<Real>& grad) {
  const Real* s = row.scores;
  grad.assign(static_cast<size_t>(experts), 0);
  if (row.dprobs != nullptr && args.score == GateScore::kSoftmax) {
    std::copy(row.dprobs, row.dprobs + experts, grad.begin());
  } else if (row.dprobs != nullptr) {
    Real sum = 0, dot = 0;
    for (int64_t e = 0; e < experts; ++e) sum += s[e];
    for (int64_t e = 0; e < experts; ++e) dot += row.dprobs[e] * s[e] / sum;
    for (int64_t e = 0; e < experts; ++e) grad[e] = (row.dprobs[e] - dot) / sum;
  }
  if (row.dweights != nullptr) {
    const Real sum = args.renormalize ? SelectedSum(s, row.ids, args.k) : Real(1);
    Real dot = 0;
    for (int64_t j = 0; args.renormalize && j < args.k; ++j) {
      dot += row.dweights[j] * s[row.ids[j]] / sum;
    }
    for (int64_t j = 0; j < args.k; ++j) {
      grad[row.ids[j]] += static_cast<Real>(args.scaling) * (row.dweights[j] - dot) / sum;
    }
  }
  Real dot = 0;
  for (int64_t e = 0; args.score == GateScore::kSoftmax && e < experts; ++e) dot += grad[e] * s[e];
  for (int64_t e = 0; e < experts; ++e) {
    row.dlogits[e] = args.score == GateScore::kSoftmax ? s[e] * (grad[e] - dot)
                                                       : grad[e] * s[e] * (Real(1) - s[e]);
  }
}

}  // namespace cadre::ops
