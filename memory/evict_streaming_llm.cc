// Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (ICLR 2024): the first
// four tokens and the newest; no attention is looked at.
#include <algorithm>

#include "memory/kv_eviction.h"

namespace cadre {
namespace {

constexpr int64_t kSinks = 4;

class StreamingLlm : public KvEvictionPolicy {
 public:
  std::string_view name() const override { return "streaming_llm"; }
  Queries observed() const override { return Queries::kNone; }
  int64_t least_budget() const override { return kSinks + 1; }
  int64_t Recent(int64_t budget) const override { return budget - kSinks; }
  bool evicts_answers() const override { return true; }
  bool positions_in_cache() const override { return true; }

  std::vector<float> Scores(const KeyAttention& attention) const override {
    std::vector<float> scores(static_cast<size_t>(attention.kv_heads * attention.keys));
    Rank(attention, scores);
    return scores;
  }
  void Update(const KeyAttention& newest, std::span<float> scores) const override {
    Rank(newest, scores);
  }

 private:
  // The older the better: what is not recent is a sink or goes.
  static void Rank(const KeyAttention& attention, std::span<float> scores) {
    for (int64_t i = 0; i < attention.kv_heads * attention.keys; ++i) {
      scores[static_cast<size_t>(i)] = -static_cast<float>(i % attention.keys);
    }
  }
};

}  // namespace

std::unique_ptr<KvEvictionPolicy> MakeStreamingLlm() { return std::make_unique<StreamingLlm>(); }

}  // namespace cadre
