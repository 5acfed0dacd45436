#include "bench/serve_load_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/random.h"

namespace cadre::bench {
namespace {

constexpr int64_t kMaxRequests = 10'000'000;

int64_t Scaled(int64_t tokens, double scale, int64_t bound) {
  const auto scaled = static_cast<int64_t>(std::llround(static_cast<double>(tokens) * scale));
  return std::max<int64_t>(bound > 0 ? std::min(scaled, bound) : scaled, 1);
}

absl::Status CheckOptions(const PlanOptions& options, const Trace& trace) {
  const bool traced = !trace.requests.empty();
  if (!traced && options.rate <= 0) {
    return InvalidArgument("rate: {}, without a trace it must be over 0", options.rate);
  }
  if (options.rate < 0 || options.rate_scale <= 0 || options.length_scale <= 0) {
    return InvalidArgument("rate {}, rate scale {} and length scale {} must be over 0",
                           options.rate, options.rate_scale, options.length_scale);
  }
  if (options.requests <= 0 && options.duration <= 0) {
    return InvalidArgument("a bound is needed: a number of requests or a duration");
  }
  if (traced && options.skip >= static_cast<int64_t>(trace.requests.size())) {
    return InvalidArgument("skip: {}, the trace has {} requests", options.skip,
                           trace.requests.size());
  }
  for (double weight : options.key_weights) {
    if (!(weight > 0)) return InvalidArgument("key weight: {}, it must be over 0", weight);
  }
  return absl::OkStatus();
}

// The key whose share of the unit line `draw` falls on.
size_t DrawKey(const std::vector<double>& weights, double draw) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  double reached = 0;
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    reached += weights[i] / sum;
    if (draw < reached) return i;
  }
  return weights.size() - 1;
}

PlannedRequest FromTrace(const TraceRequest& traced, const PlanOptions& options,
                         int64_t block_tokens) {
  PlannedRequest request{.prompt_tokens = Scaled(traced.prompt_tokens, options.length_scale,
                                                 options.max_prompt_tokens),
                         .output_tokens = Scaled(traced.output_tokens, options.length_scale,
                                                 options.max_output_tokens),
                         .blocks = traced.blocks};
  if (block_tokens > 0) {
    // Rounding a block must not leave tokens without one.
    const auto held = static_cast<int64_t>(traced.blocks.size()) * block_tokens;
    request.prompt_tokens = std::min(request.prompt_tokens, held);
  }
  return request;
}

}  // namespace

absl::StatusOr<LoadPlan> MakePlan(const PlanOptions& options, const Trace& trace) {
  CADRE_RETURN_IF_ERROR(CheckOptions(options, trace));
  const RandomKey arrivals(options.seed, "arrivals"), keys(options.seed, "keys");
  LoadPlan plan{.block_tokens = trace.block_tokens == 0
                                    ? 0
                                    : Scaled(trace.block_tokens, options.length_scale, 0),
                .salt = options.seed};
  const auto traced = static_cast<int64_t>(trace.requests.size());
  const int64_t bound = options.requests > 0 ? options.requests : kMaxRequests;
  double poisson = 0;
  for (int64_t i = 0; i < bound; ++i) {
    const auto index = static_cast<uint64_t>(i);
    poisson += options.rate > 0 ? -std::log1p(-arrivals.Uniform(index)) / options.rate : 0;
    double at = poisson;
    PlannedRequest request{.prompt_tokens = options.prompt_tokens,
                           .output_tokens = options.output_tokens};
    if (traced > 0) {
      if (options.skip + i >= traced) break;
      const TraceRequest& source = trace.requests[static_cast<size_t>(options.skip + i)];
      request = FromTrace(source, options, plan.block_tokens);
      const double own = source.at - trace.requests[static_cast<size_t>(options.skip)].at;
      if (options.rate == 0) at = own / options.rate_scale;
    }
    if (options.duration > 0 && at > options.duration) break;
    request.at = at;
    request.key = DrawKey(options.key_weights, keys.Uniform(index));
    plan.requests.push_back(std::move(request));
  }
  if (plan.requests.empty()) return InvalidArgument("no request falls within the bounds");
  return plan;
}

std::vector<int32_t> PromptTokens(const LoadPlan& plan, size_t request, int64_t vocabulary) {
  const PlannedRequest& planned = plan.requests[request];
  const RandomKey own(plan.salt, "prompt"), shared(plan.salt, "block");
  std::vector<int32_t> tokens;
  tokens.reserve(static_cast<size_t>(planned.prompt_tokens));
  for (int64_t i = 0; i < planned.prompt_tokens; ++i) {
    const uint64_t draw =
        planned.blocks.empty()
            ? own.U64(static_cast<uint64_t>(i), request)
            : shared.U64(static_cast<uint64_t>(i % plan.block_tokens),
                         static_cast<uint64_t>(
                             planned.blocks[static_cast<size_t>(i / plan.block_tokens)]));
    tokens.push_back(static_cast<int32_t>(draw % static_cast<uint64_t>(vocabulary)));
  }
  return tokens;
}

}  // namespace cadre::bench
