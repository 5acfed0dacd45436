// What the engine tells about a sequence's tokens: logprobs of prompt tokens, the event of a
// sampled one, and why a sequence ends.
//
// Engine thread only. T tokens of the step, D model.
#pragma once

#include <span>

#include "core/context.h"
#include "core/tensor.h"
#include "serving/sequence.h"

namespace cadre {

class Decoder;

// Adds to the sequence's first event the logprobs of the prompt tokens that the chunk's rows
// predict; its first row is `first_row` of hidden [T, D]. A recomputed prompt is not reported
// again.
void ReportPrompt(Context& ctx, const Decoder& decoder, const ScheduledChunk& chunk,
                  const Tensor& hidden, int64_t first_row);

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
