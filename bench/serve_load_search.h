// The highest rate that a server bears within an SLO.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include "bench/serve_load_report.h"

namespace cadre::bench {

struct SearchOptions {
  double start = 1;       // the first rate that is tried
  double goodput = 0.95;  // what a rate must reach to be borne
  int steps = 5;          // bisections after the rate is bracketed
  double lowest = 0;      // no lower rate is tried
};

struct SearchResult {
  double rate = 0;  // the highest that was borne; 0: not even the lowest that was tried
  std::vector<std::pair<double, double>> tried;  // (rate, goodput), in order
};

// Runs `goodput_at` (rate -> share of good requests) at the start, doubling (16 times at most) or
// halving (6 times, and not below `lowest`: ever lower rates take ever longer) until it is
// bracketed, then bisects the bracket by its geometric mean.
SearchResult FindHighestRate(const SearchOptions& options,
                             const std::function<double(double)>& goodput_at);

// The goodput at a plan's rate. Ends the run as soon as `goodput` is out of its reach, so a rate
// that is not borne costs seconds; the requests that are broken off then count as bad.
Report MeasureRate(const LoadPlan& plan, ClientOptions options, const Slo& slo, double goodput);

// Sends `requests` of the plan, spread over it, one at a time to a server with nothing else to do.
LoadResult RunUnloaded(const LoadPlan& plan, const ClientOptions& options, size_t requests);

// `factor` times the medians of an unloaded server.
Slo SloFrom(const Report& unloaded, double factor, double gap_share);

}  // namespace cadre::bench
