// How many weights a decoder has and how many floating-point operations a token costs: for model
// FLOP utilization, memory plans and messages. Callable from any thread.
#pragma once

#include <cstdint>

#include "model/decoder_spec.h"

namespace cadre {

struct ParameterCounts {
  int64_t total = 0;      // tied embeddings once
  int64_t active = 0;     // of which one token uses: its top_k experts only
  int64_t embedding = 0;  // the input embedding, which multiplies nothing
};
ParameterCounts CountParameters(const DecoderSpec& spec);

// Matrix products of one token's forward and backward pass in a sequence of `sequence` tokens:
// 6 x the active weights that multiply (the head included, the input embedding not) + attention's
// two products over the keys that a causal token sees on average, windows respected. Norms,
// softmaxes and other pointwise work are not counted, recomputation neither.
double ModelFlopsPerToken(const DecoderSpec& spec, int64_t sequence);

// Bytes of keys and values that one token adds to a cache of elements of `element_bytes`.
int64_t KvBytesPerToken(const DecoderSpec& spec, int64_t element_bytes);

}  // namespace cadre
