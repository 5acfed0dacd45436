// How evenly experts are used: counts per layer for metrics, and the router-bias update that
// balances without a loss (Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy for
// Mixture-of-Experts", 2024; DeepSeek V3).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"

namespace cadre::moe {

// Tokens that each expert was given; integers, so any order of adding gives the same.
class ExpertLoad {
 public:
  explicit ExpertLoad(int64_t experts) : counts_(static_cast<size_t>(experts), 0) {}

  void Add(const Tensor& ids);  // i32 [T, top_k]
  void Clear();
  std::span<const int64_t> counts() const { return counts_; }
  std::span<int64_t> counts() { return counts_; }  // for a sum over ranks
  // The fullest expert's count over the mean; 0 before any token.
  double MaxOverMean() const;

 private:
  std::vector<int64_t> counts_;
};

// bias[e] += rate * sign(mean count - count[e]), once a step, with the global batch's counts.
// Changes `correction` ([E], see RouterParams) in place and reports WeightsChanged.
void UpdateRouterBias(Context& ctx, ParamId correction, std::span<const int64_t> counts,
                      double rate);

}  // namespace cadre::moe
