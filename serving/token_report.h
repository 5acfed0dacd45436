// What the engine tells about a sequence's tokens: logprobs of prompt tokens, the event of a
// sampled one, and why a sequence ends.
//
// Engine thread only.
#pragma once

#include <span>

#include "serving/sequence.h"
#include "serving/step_forward.h"

namespace cadre {

// Adds to the sequence's first event the logprobs of the prompt tokens that ScoredRows(chunk) tell
// of; the chunk's first row is `first_row` of the step's. A recomputed prompt is not reported
// again.
void ReportPrompt(const Context& ctx, StepForward& forward, const ScheduledChunk& chunk,
                  int64_t first_row);

// Appends a sampled token to its sequence and returns its event, with a finish reason where it was
// the last one. Nothing is appended where max_tokens is 0.
struct SampledToken {
  int32_t token = -1;
  std::span<const float> logits;  // [V] its row
  float lse = 0;
};
TokenEvent AppendToken(Sequence& sequence, const SampledToken& sampled, int64_t max_context);

// Fills in what every event of a sequence says, and what its first and its last one say besides.
void CompleteEvent(Sequence& sequence, int64_t weight_version, TokenEvent& event);

}  // namespace cadre
