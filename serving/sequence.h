// One request on its way through the engine. Owned by the scheduler; engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "memory/kv_cache.h"
#include "serving/request.h"

namespace cadre {

class TokenConstraint;

struct Sequence {
  GenerationRequest request;
  std::shared_ptr<EventSink> sink;
  std::vector<int32_t> tokens;  // the prompt, then what was sampled
  bool fetched = false;         // its prefix was asked for from the disk tier
  KvSequence kv;                // of its first kv.stored() tokens
  int64_t prompt_reported = 0;  // prompt tokens whose logprobs were computed
  int64_t pooled_tokens = 0;    // prompt tokens that are in `pooled`
  std::vector<double> pooled;   // [D] their hidden states' sum
  TokenEvent first_event;       // gathers what is told of the prompt until an event goes out
  bool started = false;         // an event went out
  std::shared_ptr<TokenConstraint> constraint;  // where the request has a grammar
  uint64_t arrival = 0;                         // counts up as sequences come to the scheduler
  int preemptions = 0;
  int64_t computed_most = 0;  // tokens that were stored at one time or another
  double submitted = 0, scheduled = 0, first_token = 0;  // seconds on the engine's clock

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt->size()); }
  int64_t known_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return known_tokens() - prompt_tokens(); }
  std::span<const int32_t> generated_tokens() const {
    return std::span(tokens).subspan(request.prompt->size());
  }
};

// Tokens of a sequence that one step computes.
struct ScheduledChunk {
  Sequence* sequence;
  int64_t begin;  // the first one: what was stored when the step was planned
  int64_t tokens;

  int64_t end() const { return begin + tokens; }
  // Whether the chunk ends with the last known token, so that the next one is sampled.
  bool samples() const { return end() == sequence->known_tokens(); }
};

}  // namespace cadre
