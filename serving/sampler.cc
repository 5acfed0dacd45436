#include "serving/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/random.h"
#include "serving/logit_adjustments.h"

namespace cadre {
namespace {

struct Candidate {
  int32_t token;
  float logit;
  double weight = 0;  // exp(logit / temperature), relative to the most likely
};

// A model that diverged gives NaN, which no order takes: the least likely of all.
float Ranked(float logit) {
  return std::isnan(logit) ? -std::numeric_limits<float>::infinity() : logit;
}

bool MayDraw(const SampleInput& input, int32_t token) {
  const auto id = static_cast<size_t>(token);
  return (input.allowed.empty() || (input.allowed[id / 64] >> (id % 64) & 1) != 0) &&
         !std::ranges::binary_search(input.banned, token);
}

bool NothingToDraw(const SampleInput& input) {
  for (int32_t i = 0; i < static_cast<int32_t>(input.logits.size()); ++i) {
    if (MayDraw(input, i)) return false;
  }
  return true;
}

bool MoreLikely(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

int32_t Greedy(const SampleInput& input) {
  int32_t best = -1;
  for (int32_t i = 0; i < static_cast<int32_t>(input.logits.size()); ++i) {
    if (best >= 0 && !(Ranked(input.logits[i]) > Ranked(input.logits[best]))) continue;
    if (MayDraw(input, i)) best = i;
  }
  return best;
}

// Every token that may be drawn, weighted, in the order of ids.
std::vector<Candidate> Candidates(const SamplingParams& params, const SampleInput& input) {
  std::vector<Candidate> all(input.logits.size());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i] = {static_cast<int32_t>(i), Ranked(input.logits[i])};
  }
  if (!input.banned.empty() || !input.allowed.empty()) {
    std::erase_if(all, [&](const Candidate& c) { return !MayDraw(input, c.token); });
  }
  float highest = -std::numeric_limits<float>::infinity();
  for (const Candidate& c : all) highest = std::max(highest, c.logit);
  // Equal infinities have no difference.
  for (Candidate& c : all) {
    c.weight = c.logit == highest
                   ? 1
                   : std::exp((static_cast<double>(c.logit) - highest) / params.temperature);
  }
  return all;
}

double TotalWeight(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  return total;
}

void KeepTopK(int k, std::vector<Candidate>& candidates) {
  if (k <= 0 || k >= static_cast<int>(candidates.size())) return;
  std::nth_element(candidates.begin(), candidates.begin() + (k - 1), candidates.end(), MoreLikely);
  candidates.resize(k);
}

// The fewest most likely candidates whose weights reach the share p of the whole. Sorted piece by
// piece: a sharp distribution needs only its head.
void KeepTopP(double p, std::vector<Candidate>& candidates) {
  if (p >= 1) return;
  const double target = p * TotalWeight(candidates);
  double sum = 0;
  size_t sorted = 0;
  while (sorted < candidates.size()) {
    const size_t upto = std::min(candidates.size(), std::max<size_t>(64, sorted * 4));
    std::partial_sort(candidates.begin() + sorted, candidates.begin() + upto, candidates.end(),
                      MoreLikely);
    for (; sorted < upto; ++sorted) {
      sum += candidates[sorted].weight;
      if (sum >= target) return candidates.resize(sorted + 1);
    }
  }
}

// The most likely token has weight 1.
void KeepMinP(double p, std::vector<Candidate>& candidates) {
  if (p > 0) std::erase_if(candidates, [p](const Candidate& c) { return c.weight < p; });
}

}  // namespace

int32_t SampleToken(const SamplingParams& params, const SampleInput& given) {
  SampleInput input = given;
  std::vector<float> adjusted;
  if (AdjustsLogits(params)) {
    adjusted.assign(input.logits.begin(), input.logits.end());
    AdjustLogits(params, input.prompt, input.generated, adjusted);
    input.logits = adjusted;
  }
  if (!input.banned.empty() && NothingToDraw(input)) input.banned = {};
  if (params.temperature == 0) return Greedy(input);
  std::vector<Candidate> candidates = Candidates(params, input);
  KeepTopK(params.top_k, candidates);
  KeepTopP(params.top_p, candidates);
  KeepMinP(params.min_p, candidates);
  // The filters leave different orders behind; the draw walks ids.
  std::ranges::sort(candidates, {}, &Candidate::token);
  const RandomKey key(params.seed, "sample");
  const double point =
      key.Uniform(static_cast<uint64_t>(input.position), params.choice) * TotalWeight(candidates);
  double sum = 0;
  for (const Candidate& c : candidates) {
    sum += c.weight;
    if (point < sum) return c.token;
  }
  return candidates.back().token;
}

std::vector<TokenLogprob> TopLogprobs(std::span<const float> logits, float lse, int k) {
  const auto count = std::min<size_t>(std::max(k, 0), logits.size());
  std::vector<Candidate> most;  // a heap, the least likely of them first
  for (size_t i = 0; i < logits.size() && count > 0; ++i) {
    const Candidate candidate{static_cast<int32_t>(i), Ranked(logits[i])};
    if (most.size() == count) {
      if (!MoreLikely(candidate, most.front())) continue;
      std::ranges::pop_heap(most, MoreLikely);
      most.pop_back();
    }
    most.push_back(candidate);
    std::ranges::push_heap(most, MoreLikely);
  }
  std::ranges::sort_heap(most, MoreLikely);
  std::vector<TokenLogprob> top;
  for (const Candidate& c : most) top.push_back({c.token, logits[c.token] - lse});
  return top;
}

int RankOf(std::span<const float> logits, int32_t token) {
  const float own = Ranked(logits[token]);
  int rank = 1;
  for (int32_t i = 0; i < static_cast<int32_t>(logits.size()); ++i) {
    const float other = Ranked(logits[i]);
    rank += other > own || (other == own && i < token);
  }
  return rank;
}

}  // namespace cadre
