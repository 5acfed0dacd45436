// Figures of a run: percentiles, throughput, and goodput under a service level objective (SLO).
#pragma once

#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/serve_load_client.h"

namespace cadre::bench {

// The smallest value that at least `share` of the values do not exceed (nearest rank); NaN of none.
// Reorders the values.
double Percentile(std::vector<double>& values, double share);

struct Percentiles {
  double p50 = 0, p90 = 0, p99 = 0;
};
Percentiles PercentilesOf(std::vector<double> values);

// An answer is good where it is whole, its first token came within `ttft` seconds of its scheduled
// arrival, and `gap_share` of the gaps between its tokens are within `itl` seconds (1: all of
// them).
struct Slo {
  double ttft = 0, itl = 0;  // 0: no bound
  double gap_share = 0.99;
};
bool Late(const Outcome& outcome, const Slo& slo);  // its first token
bool Slow(const Outcome& outcome, const Slo& slo);  // its gaps
bool Good(const Outcome& outcome, const Slo& slo);

struct Report {
  size_t requests = 0, whole = 0, good = 0;
  size_t late = 0, slow = 0;  // of the whole ones, by which bound they are not good; may be both
  double seconds = 0;
  double offered_rate = 0;  // requests a second as planned, from the first arrival to the last
  int64_t prompt_tokens = 0, output_tokens = 0, cached_tokens = 0;  // of whole answers
  Percentiles ttft, itl, e2e;                                       // of whole answers
  Percentiles lag;  // of the client itself: seconds from the planned time to the sending
  std::map<std::string, size_t> errors;

  double goodput() const {  // share of the requests
    return requests == 0 ? 0 : static_cast<double>(good) / static_cast<double>(requests);
  }
};

// Of all requests, or of those of one key.
Report MakeReport(const LoadResult& result, const Slo& slo);
std::vector<Report> ReportsByKey(const LoadResult& result, const Slo& slo, size_t keys);

nlohmann::json ToJson(const Report& report);
std::string ToText(const Report& report, const Slo& slo);

}  // namespace cadre::bench
