#include "memory/kv_eviction.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace cadre {
namespace {

struct NamedPolicy {
  std::string_view name;
  std::unique_ptr<KvEvictionPolicy> (*make)(const CakeOptions&);
};
constexpr NamedPolicy kPolicies[] = {
    {"streaming_llm", [](const CakeOptions&) { return MakeStreamingLlm(); }},
    {"h2o", [](const CakeOptions&) { return MakeH2O(); }},
    {"snapkv", [](const CakeOptions&) { return MakeSnapKv(); }},
    {"pyramidkv", [](const CakeOptions&) { return MakePyramidKv(); }},
    {"tova", [](const CakeOptions&) { return MakeTova(); }},
    {"cake", [](const CakeOptions& cake) { return MakeCake(cake); }},
};

}  // namespace

std::vector<int64_t> KvEvictionPolicy::Budgets(const EvictionShape& shape,
                                               std::span<const double> preferences) const {
  const int64_t recent = Recent(shape.budget);
  return std::vector<int64_t>(
      preferences.size(), std::min(shape.budget, shape.tokens) - std::min(recent, shape.tokens));
}

void KvEvictionPolicy::Update(const KeyAttention&, std::span<float>) const {}

std::vector<int32_t> SelectKept(std::span<const float> scores, int64_t keep, int64_t tokens) {
  const auto candidates = static_cast<int64_t>(scores.size());
  CADRE_CHECK(keep >= 0 && keep <= candidates && candidates <= tokens, "keep {} of {} of {} keys",
              keep, candidates, tokens);
  const auto rank = [&](int32_t i) {
    return std::isnan(scores[i]) ? -std::numeric_limits<float>::infinity() : scores[i];
  };
  std::vector<int32_t> kept(static_cast<size_t>(candidates));
  std::iota(kept.begin(), kept.end(), 0);
  std::nth_element(kept.begin(), kept.begin() + keep, kept.end(), [&](int32_t a, int32_t b) {
    return rank(a) > rank(b) || (rank(a) == rank(b) && a < b);
  });
  kept.resize(static_cast<size_t>(keep));
  std::ranges::sort(kept);
  for (int64_t i = candidates; i < tokens; ++i) kept.push_back(static_cast<int32_t>(i));
  return kept;
}

std::vector<float> PooledOverNeighbours(const std::vector<float>& rows, int64_t row_count) {
  std::vector<float> pooled(rows.size());
  PoolOverNeighbours(rows, row_count, pooled);
  return pooled;
}

void PoolOverNeighbours(std::span<const float> rows, int64_t row_count, std::span<float> pooled) {
  constexpr int64_t kReach = 2, kWidth = 2 * kReach + 1;
  const int64_t n = row_count == 0 ? 0 : static_cast<int64_t>(rows.size()) / row_count;
  for (int64_t row = 0; row < row_count; ++row) {
    const float* from = rows.data() + row * n;
    float* to = pooled.data() + row * n;
    const auto at_an_end = [&](int64_t i) {
      float sum = 0;
      for (int64_t j = std::max<int64_t>(i - kReach, 0); j <= std::min(i + kReach, n - 1); ++j) {
        sum += from[j];
      }
      to[i] = sum / kWidth;
    };
    const int64_t inner = std::max(n - kReach, kReach);
    for (int64_t i = 0; i < std::min(kReach, n); ++i) at_an_end(i);
    for (int64_t i = kReach; i < inner; ++i) {
      to[i] = (from[i - 2] + from[i - 1] + from[i] + from[i + 1] + from[i + 2]) / kWidth;
    }
    for (int64_t i = inner; i < n; ++i) at_an_end(i);
  }
}

absl::StatusOr<std::unique_ptr<KvEvictionPolicy>> MakeEvictionPolicy(std::string_view name,
                                                                     const CakeOptions& cake,
                                                                     std::string_view field) {
  for (const NamedPolicy& policy : kPolicies) {
    if (policy.name == name) return policy.make(cake);
  }
  std::string names;
  for (const NamedPolicy& policy : kPolicies) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", policy.name);
  }
  return InvalidArgument("{}: '{}', allowed are {}", field, name, names);
}

}  // namespace cadre
