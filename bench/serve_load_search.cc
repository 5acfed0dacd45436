#include "bench/serve_load_search.h"

#include <algorithm>
#include <cmath>

namespace cadre::bench {

SearchResult FindHighestRate(const SearchOptions& options,
                             const std::function<double(double)>& goodput_at) {
  constexpr int kMaxDoublings = 16, kMaxHalvings = 6;
  SearchResult result;
  auto borne = [&](double rate) {
    const double goodput = goodput_at(rate);
    result.tried.emplace_back(rate, goodput);
    return goodput >= options.goodput;
  };
  double low = options.start, high = options.start;
  const bool first = borne(options.start);
  bool bracketed = false;
  for (int i = 0; i < (first ? kMaxDoublings : kMaxHalvings) && !bracketed; ++i) {
    if (first) {
      low = high;
      high *= 2;
      bracketed = !borne(high);
    } else {
      high = low;
      low /= 2;
      if (low < options.lowest) break;
      bracketed = borne(low);
    }
  }
  if (!bracketed) {
    result.rate = first ? high : 0;
    return result;
  }
  for (int i = 0; i < options.steps; ++i) {
    const double middle = std::sqrt(low * high);
    (borne(middle) ? low : high) = middle;
  }
  result.rate = low;
  return result;
}

Report MeasureRate(const LoadPlan& plan, ClientOptions options, const Slo& slo, double goodput) {
  const double requests = static_cast<double>(plan.requests.size());
  double bad = 0;
  options.enough = [&](const Outcome& outcome) {
    bad += Good(outcome, slo) ? 0 : 1;
    return (requests - bad) / requests < goodput;
  };
  return MakeReport(RunPlan(plan, options), slo);
}

LoadResult RunUnloaded(const LoadPlan& plan, const ClientOptions& options, size_t requests) {
  LoadResult result;
  const size_t count = std::min(requests, plan.requests.size());
  for (size_t i = 0; i < count; ++i) {
    LoadPlan one{.requests = {plan.requests[i * plan.requests.size() / count]},
                 .block_tokens = plan.block_tokens,
                 .salt = plan.salt + i};
    one.requests[0].at = 0;
    LoadResult single = RunPlan(one, options);
    result.outcomes.push_back(std::move(single.outcomes[0]));
    result.seconds += single.seconds;
  }
  return result;
}

Slo SloFrom(const Report& unloaded, double factor, double gap_share) {
  return {
      .ttft = factor * unloaded.ttft.p50, .itl = factor * unloaded.itl.p50, .gap_share = gap_share};
}

}  // namespace cadre::bench
