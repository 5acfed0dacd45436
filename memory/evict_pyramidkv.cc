// Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling"
// (2024): SnapKV's scores; lower layers get more, on a straight line from
// 2 (C - w) - (C - w) / beta down to (C - w) / beta.
#include <algorithm>

#include "memory/kv_eviction.h"

namespace cadre {
namespace {

constexpr int64_t kWindow = 32;
constexpr int64_t kBeta = 20;

class PyramidKv : public KvEvictionPolicy {
 public:
  std::string_view name() const override { return "pyramidkv"; }
  Queries observed() const override { return Queries::kWindow; }
  int64_t window() const override { return kWindow; }
  int64_t least_budget() const override { return kWindow + kBeta; }
  int64_t Recent(int64_t) const override { return kWindow; }

  std::vector<int64_t> Budgets(const EvictionShape& shape,
                               std::span<const double> preferences) const override {
    const int64_t mean = shape.budget - kWindow;
    const int64_t least = mean / kBeta, most = 2 * mean - least;
    std::vector<int64_t> budgets;
    for (int64_t l = 0; l < static_cast<int64_t>(preferences.size()); ++l) {
      // Rounded down, or the layers together would be over the budget.
      const int64_t steps = std::max<int64_t>(shape.layers - 1, 1);
      const int64_t line =
          shape.layers == 1 ? mean : most - (l * (most - least) + steps - 1) / steps;
      budgets.push_back(std::min(line, shape.tokens - kWindow));
    }
    return budgets;
  }

  std::vector<float> Scores(const KeyAttention& attention) const override {
    return PooledOverNeighbours(attention.mean, attention.kv_heads);
  }
};

}  // namespace

std::unique_ptr<KvEvictionPolicy> MakePyramidKv() { return std::make_unique<PyramidKv>(); }

}  // namespace cadre
