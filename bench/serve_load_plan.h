// What a run sends and when, fixed before it starts: a pure function of the options, the trace and
// the seed.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/serve_load_trace.h"
#include "core/status.h"

namespace cadre::bench {

struct PlannedRequest {
  double at = 0;  // seconds after the run's start
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  std::vector<int64_t> blocks;  // as TraceRequest's, each of LoadPlan::block_tokens
  size_t key = 0;               // index among the API keys
};

struct LoadPlan {
  std::vector<PlannedRequest> requests;  // in the order of their times
  int64_t block_tokens = 0;
  uint64_t salt = 0;  // prompts of plans with other salts are other tokens
};

struct PlanOptions {
  // Poisson arrivals at `rate` a second; with a trace its lengths in their order, and its own
  // times, scaled, where `rate` is 0.
  double rate = 0;
  double rate_scale = 1;  // of the trace's own times: 2 is twice as many a second
  double length_scale = 1;
  // Without a trace every request has these.
  int64_t prompt_tokens = 256, output_tokens = 64;
  // Longer ones are cut; 0: no bound. Applied after the scale.
  int64_t max_prompt_tokens = 0, max_output_tokens = 0;
  int64_t skip = 0;                       // requests of the trace before the first
  int64_t requests = 0;                   // bounds of the run; one of them is needed, 0 is none
  double duration = 0;                    // seconds
  std::vector<double> key_weights = {1};  // of each API key, its share of the requests
  uint64_t seed = 0;
};

// kInvalidArgument where a number makes no plan, or the plan would be empty.
absl::StatusOr<LoadPlan> MakePlan(const PlanOptions& options, const Trace& trace);

// The tokens of a request's prompt, each in [0, vocabulary). Equal blocks give equal tokens.
std::vector<int32_t> PromptTokens(const LoadPlan& plan, size_t request, int64_t vocabulary);

}  // namespace cadre::bench
