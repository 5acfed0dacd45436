// One request on its way through the engine. Owned by the scheduler; engine thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "memory/kv_cache.h"
#include "serving/evicting_sequence.h"
#include "serving/request.h"

namespace cadre {

class TokenConstraint;

struct Sequence {
  GenerationRequest request;
  std::shared_ptr<EventSink> sink;
  int lane = 0;                 // see serving/lanes.h
  std::vector<int32_t> tokens;  // the prompt, then what was sampled
  bool fetched = false;         // its prefix was asked for from the disk tier
  std::vector<int32_t> draft;   // guesses of what follows, in the step that is being run
  KvSequence kv;                // of its first kv.stored() tokens; where it evicts, its own blocks
  std::unique_ptr<EvictingSequence> evicting;  // null: it keeps all keys and values
  int64_t prompt_reported = 0;                 // prompt tokens whose logprobs were computed
  int64_t pooled_tokens = 0;                   // prompt tokens that are in `pooled`
  std::vector<double> pooled;                  // [D] their hidden states' sum
  TokenEvent first_event;  // gathers what is told of the prompt until an event goes out
  bool started = false;    // an event went out
  std::shared_ptr<TokenConstraint> constraint;  // where the request has a grammar
  uint64_t arrival = 0;                         // counts up as sequences come to the scheduler
  int preemptions = 0;
  int64_t computed_most = 0;  // tokens that were stored at one time or another
  double submitted = 0, scheduled = 0, first_token = 0;  // seconds on the engine's clock

  int64_t prompt_tokens() const { return static_cast<int64_t>(request.prompt->size()); }
  int64_t known_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t generated() const { return known_tokens() - prompt_tokens(); }
  // Known tokens that are not computed yet, or what is left of an evicting one's prompt.
  int64_t unread() const {
    return evicting != nullptr ? evicting->unread() : known_tokens() - kv.stored();
  }
  // Whether its next token is all that is to do.
  bool decodes() const { return evicting != nullptr ? evicting->read() : unread() == 1; }
  std::span<const int32_t> generated_tokens() const {
    return std::span(tokens).subspan(request.prompt->size());
  }
};

// Tokens of a sequence that one step computes: known ones and, behind the last of them, guesses. Of
// an evicting sequence's prompt a share, worth that many tokens.
struct ScheduledChunk {
  Sequence* sequence;
  int64_t begin;  // the first one: what was stored when the step was planned
  int64_t tokens;
  bool by_layers = false;  // of an evicting sequence's prompt; begin says nothing

  int64_t end() const { return begin + tokens; }
  // Whether the chunk goes to the last known token, so that the next one is sampled.
  bool samples() const { return !by_layers && end() >= sequence->known_tokens(); }
  // Rows, the last ones, at which a token may be sampled.
  int64_t sampled_rows() const { return samples() ? end() - sequence->known_tokens() + 1 : 0; }
  std::vector<int32_t> Tokens() const {
    const int64_t known = std::min(end(), sequence->known_tokens());
    std::vector<int32_t> all(sequence->tokens.begin() + begin, sequence->tokens.begin() + known);
    all.insert(all.end(), sequence->draft.begin(), sequence->draft.begin() + (end() - known));
    return all;
  }
};

}  // namespace cadre
