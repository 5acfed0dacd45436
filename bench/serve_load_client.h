// Sends a plan to a server over HTTP and gathers what came of each request. Open loop: every
// request goes out at its time, however many are under way, on a connection that is free or a new
// one.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/serve_load_answer.h"
#include "bench/serve_load_plan.h"
#include "core/status.h"

namespace cadre::bench {

struct Target {
  std::string host, port;
  std::string path;  // before /v1/..., without a slash at its end
};

// "http://HOST[:PORT][/PATH]"; kInvalidArgument for anything else.
absl::StatusOr<Target> ParseUrl(const std::string& url);

struct ClientOptions {
  Target target;
  std::string model;                  // empty: the server's own
  std::vector<std::string> api_keys;  // by PlannedRequest::key; empty: none is sent
  int64_t vocabulary = 256;
  bool names_tokens = false;  // asks for their ids: return_token_ids, as vLLM knows it
  double timeout_s = 120;     // of a request, from its time in the plan
  // Called in RunPlan's thread with every request that has ended; true ends the run: no more are
  // sent, those under way are broken off, and both have the error kBrokenOff.
  std::function<bool(const Outcome&)> enough;
};
inline constexpr char kBrokenOff[] = "broken off";

struct LoadResult {
  std::vector<Outcome> outcomes;  // as the plan's requests
  double seconds = 0;             // from the run's start to the last answer's end
};

// Blocks until every request has ended, or `options.enough` says so. One thread: the caller's.
LoadResult RunPlan(const LoadPlan& plan, const ClientOptions& options);

}  // namespace cadre::bench
