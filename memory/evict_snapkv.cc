// Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation" (2024): the prompt's
// keys that its last 32 queries attend to, pooled over neighbours, and those 32. Once, after the
// prompt.
#include "memory/kv_eviction.h"

namespace cadre {
namespace {

constexpr int64_t kWindow = 32;

class SnapKv : public KvEvictionPolicy {
 public:
  std::string_view name() const override { return "snapkv"; }
  Queries observed() const override { return Queries::kWindow; }
  int64_t window() const override { return kWindow; }
  int64_t least_budget() const override { return kWindow + 1; }
  int64_t Recent(int64_t) const override { return kWindow; }

  // A mean where the paper sums: the same order.
  std::vector<float> Scores(const KeyAttention& attention) const override {
    return PooledOverNeighbours(attention.mean, attention.kv_heads);
  }
};

}  // namespace

std::unique_ptr<KvEvictionPolicy> MakeSnapKv() { return std::make_unique<SnapKv>(); }

}  // namespace cadre
