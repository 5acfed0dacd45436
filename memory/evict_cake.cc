// Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences" (ICLR 2025).
// With A the attention of the last w = 32 queries to the keys before them:
//   H = - sum A log A,  V = sum over keys of the variance over queries,  P = H^(1/tau1) V^(1/tau2);
//   a layer's budget is its share of P in (C - w) L, at most S - w, what is over spread evenly;
//   a key's score is mean + gamma variance, pooled over neighbours.
// The split is made anew as each layer comes in, over the layers so far. A share that was cut
// cannot grow back, and spreading evenly what a later layer could not use would let it: so a budget
// is the least of a layer's splits. While the answer grows every layer stays at its size, by the
// newest query's attention, pooled.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "memory/kv_eviction.h"

namespace cadre {
namespace {

constexpr int64_t kWindow = 32;

// P's shares of `total`, each at most `most`.
std::vector<int64_t> Split(std::span<const double> preferences, int64_t total, int64_t most) {
  const double sum = std::accumulate(preferences.begin(), preferences.end(), 0.0);
  std::vector<int64_t> budgets;
  for (const double p : preferences) {
    // Attention that says nothing (zero, or no number) prefers no layer.
    const double share =
        sum > 0 && std::isfinite(sum) ? p / sum : 1.0 / static_cast<double>(preferences.size());
    budgets.push_back(static_cast<int64_t>(share * static_cast<double>(total)));
  }
  while (true) {
    int64_t excess = 0, open = 0;
    for (int64_t& budget : budgets) {
      excess += std::max<int64_t>(budget - most, 0);
      budget = std::min(budget, most);
      open += budget < most;
    }
    if (excess == 0 || open == 0) return budgets;
    int64_t more = excess % open;
    for (int64_t& budget : budgets) {
      if (budget < most) budget += excess / open + (more-- > 0 ? 1 : 0);
    }
  }
}

class Cake : public KvEvictionPolicy {
 public:
  explicit Cake(const CakeOptions& options) : options_(options) {}

  std::string_view name() const override { return "cake"; }
  Queries observed() const override { return Queries::kWindow; }
  int64_t window() const override { return kWindow; }
  int64_t least_budget() const override { return kWindow + 1; }
  bool Evicts(const EvictionShape& shape) const override {
    return shape.tokens > shape.budget + kWindow;
  }
  int64_t Recent(int64_t) const override { return kWindow; }
  bool evicts_answers() const override { return true; }

  double Preference(const KeyAttention& attention) const override {
    return std::pow(std::max(attention.entropy, 0.0), 1 / options_.tau1) *
           std::pow(std::max(attention.total_variance, 0.0), 1 / options_.tau2);
  }

  std::vector<int64_t> Budgets(const EvictionShape& shape,
                               std::span<const double> preferences) const override {
    const int64_t total = (shape.budget - kWindow) * shape.layers, most = shape.tokens - kWindow;
    std::vector<int64_t> budgets;
    for (size_t seen = 1; seen <= preferences.size(); ++seen) {
      const std::vector<int64_t> split = Split(preferences.first(seen), total, most);
      budgets.push_back(most);
      for (size_t l = 0; l < seen; ++l) budgets[l] = std::min(budgets[l], split[l]);
    }
    return budgets;
  }

  std::vector<float> Scores(const KeyAttention& attention) const override {
    std::vector<float> scores(attention.mean.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      scores[i] = attention.mean[i] + static_cast<float>(options_.gamma) * attention.variance[i];
    }
    return PooledOverNeighbours(scores, attention.kv_heads);
  }

  void Update(const KeyAttention& newest, std::span<float> scores) const override {
    PoolOverNeighbours(newest.mean, newest.kv_heads, scores);
  }

 private:
  CakeOptions options_;
};

}  // namespace

std::unique_ptr<KvEvictionPolicy> MakeCake(const CakeOptions& options) {
  return std::make_unique<Cake>(options);
}

}  // namespace cadre
