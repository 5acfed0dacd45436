// KV eviction: which keys of a long context a sequence keeps, layer by layer and KV head by KV
// head.
//
// A policy is four choices: whose attention it looks at, how the budget is cut over the layers,
// what a key's score is, and whether keys go on leaving while the answer grows. The engine asks in
// this order, for a prompt of S tokens:
//
//   if (policy.Evicts(shape))
//     after layer m: preferences.push_back(policy.Preference(attention of layer m));
//                    budgets = policy.Budgets(shape, preferences);      // of layers 0 .. m
//                    of every layer l <= m: SelectKept(policy.Scores(attention of l), ...)
//   after each token of the answer, where policy.evicts_answers():
//     policy.Update(scores, newest query's attention), then SelectKept again
//
// Budgets count keys per KV head and layer, the newest (Recent) apart, and never grow as layers
// come in: what left a cache is gone. So evicting after each layer (the cascade, whose peak is the
// whole budget and one layer) and evicting once after the last keep the same keys.
//
// Pure functions of their arguments; any thread. Legend: S tokens of the prompt, L layers, K KV
// heads, C budget (kv_budget: keys per KV head and layer on the average), w observation window.
// Sources are named in each policy's file.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {

// What some queries of a sequence pay attention to in one layer. Probabilities are the whole
// softmax's (over all keys that a query sees), averaged over the query heads of a KV head.
struct KeyAttention {
  int64_t kv_heads = 0;
  int64_t keys = 0;             // n: the oldest keys, those before the window (prompt) or all
  std::vector<float> mean;      // [K, n] over the queries; of Queries::kAll the sum
  std::vector<float> variance;  // [K, n] over the queries, unbiased; empty but for kWindow
  double entropy = 0;           // - sum of p log p over query heads, queries and keys
  double total_variance = 0;    // sum of the variance over query heads and keys
};

struct EvictionShape {
  int64_t tokens = 0;  // S
  int64_t layers = 0;  // L
  int64_t budget = 0;  // C
};

class KvEvictionPolicy {
 public:
  enum class Queries {
    kNone,    // positions say all
    kNewest,  // the last one
    kWindow,  // the last w = window()
    kAll,
  };

  virtual ~KvEvictionPolicy() = default;

  virtual std::string_view name() const = 0;
  virtual Queries observed() const = 0;
  virtual int64_t window() const { return 0; }

  // The least budget that leaves a choice.
  virtual int64_t least_budget() const = 0;
  virtual bool Evicts(const EvictionShape& shape) const { return shape.tokens > shape.budget; }
  // How many of the newest keys stay whatever their scores.
  virtual int64_t Recent(int64_t budget) const = 0;

  // What layers are weighed by; a policy that weighs none gives 1.
  virtual double Preference(const KeyAttention&) const { return 1; }
  // Of the layers whose preferences are known, the first ones: keys per KV head that each keeps
  // beside the recent ones, at most S - Recent. Together at most (C - Recent) L.
  virtual std::vector<int64_t> Budgets(const EvictionShape& shape,
                                       std::span<const double> preferences) const;
  // [K, n], the higher the better.
  virtual std::vector<float> Scores(const KeyAttention& attention) const = 0;

  // Whether the cache stays at its size while the answer grows; else it grows with it.
  virtual bool evicts_answers() const { return false; }
  // scores [K, n] of all keys in the cache, the newest last with score 0, become those after the
  // newest query, whose attention (keys = n) is given.
  virtual void Update(const KeyAttention& newest, std::span<float> scores) const;

  // Keys are kept unrotated and rotated by their place in the cache.
  virtual bool positions_in_cache() const { return false; }
};

// Of one KV head, ascending indices: the `keep` best of the first scores.size() keys (ties: the
// older one) and all from there to `tokens`. keep <= scores.size() <= tokens.
std::vector<int32_t> SelectKept(std::span<const float> scores, int64_t keep, int64_t tokens);

// Averages over five neighbours in a row, zero beyond its ends (torch's avg_pool1d, kernel 5,
// padding 2): a key is worth what stands around it.
std::vector<float> PooledOverNeighbours(const std::vector<float>& rows, int64_t row_count);
void PoolOverNeighbours(std::span<const float> rows, int64_t row_count, std::span<float> pooled);

struct CakeOptions {
  double tau1 = 1, tau2 = 1;  // temperatures of entropy and variance
  double gamma = 200;         // weight of the variance in a key's score
};

// "streaming_llm", "h2o", "snapkv", "pyramidkv", "tova" or "cake"; kInvalidArgument names them, and
// the field that the name came in.
absl::StatusOr<std::unique_ptr<KvEvictionPolicy>> MakeEvictionPolicy(
    std::string_view name, const CakeOptions& cake = {}, std::string_view field = "kv_eviction");

// Each policy, in a file of its own.
std::unique_ptr<KvEvictionPolicy> MakeStreamingLlm();
std::unique_ptr<KvEvictionPolicy> MakeH2O();
std::unique_ptr<KvEvictionPolicy> MakeSnapKv();
std::unique_ptr<KvEvictionPolicy> MakePyramidKv();
std::unique_ptr<KvEvictionPolicy> MakeTova();
std::unique_ptr<KvEvictionPolicy> MakeCake(const CakeOptions& options);

}  // namespace cadre
