// Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language
// Models" (NeurIPS 2023): a key's score is all the attention it was ever paid; half the budget is
// for the best, half for the newest.
#include "memory/kv_eviction.h"

namespace cadre {
namespace {

class H2O : public KvEvictionPolicy {
 public:
  std::string_view name() const override { return "h2o"; }
  Queries observed() const override { return Queries::kAll; }
  int64_t least_budget() const override { return 2; }
  int64_t Recent(int64_t budget) const override { return budget / 2; }
  bool evicts_answers() const override { return true; }

  std::vector<float> Scores(const KeyAttention& attention) const override { return attention.mean; }
  void Update(const KeyAttention& newest, std::span<float> scores) const override {
    CADRE_CHECK(scores.size() == newest.mean.size(), "{} scores, {} keys", scores.size(),
                newest.mean.size());
    for (size_t i = 0; i < scores.size(); ++i) scores[i] += newest.mean[i];
  }
};

}  // namespace

std::unique_ptr<KvEvictionPolicy> MakeH2O() { return std::make_unique<H2O>(); }

}  // namespace cadre
