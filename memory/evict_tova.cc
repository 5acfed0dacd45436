// Oren et al., "Transformers are Multi-State RNNs" (EMNLP 2024), TOVA: the key that the newest
// query attends to least goes, by the mean over all heads, so a layer's heads keep the same;
// nothing is protected, the newest key included. A prompt is cut once, by its last query.
#include "memory/kv_eviction.h"

namespace cadre {
namespace {

class Tova : public KvEvictionPolicy {
 public:
  std::string_view name() const override { return "tova"; }
  Queries observed() const override { return Queries::kNewest; }
  int64_t least_budget() const override { return 1; }
  int64_t Recent(int64_t) const override { return 0; }
  bool evicts_answers() const override { return true; }

  std::vector<float> Scores(const KeyAttention& attention) const override {
    std::vector<float> scores(attention.mean.size());
    OverHeads(attention, scores);
    return scores;
  }
  void Update(const KeyAttention& newest, std::span<float> scores) const override {
    OverHeads(newest, scores);
  }

 private:
  static void OverHeads(const KeyAttention& attention, std::span<float> scores) {
    const int64_t heads = attention.kv_heads, keys = attention.keys;
    CADRE_CHECK(static_cast<int64_t>(scores.size()) == heads * keys, "{} scores, {} x {} keys",
                scores.size(), heads, keys);
    for (int64_t i = 0; i < keys; ++i) {
      double sum = 0;
      for (int64_t h = 0; h < heads; ++h) sum += attention.mean[static_cast<size_t>(h * keys + i)];
      for (int64_t h = 0; h < heads; ++h) {
        scores[static_cast<size_t>(h * keys + i)] = static_cast<float>(sum / heads);
      }
    }
  }
};

}  // namespace

std::unique_ptr<KvEvictionPolicy> MakeTova() { return std::make_unique<Tova>(); }

}  // namespace cadre
