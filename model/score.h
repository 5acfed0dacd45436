// Log probabilities of given tokens, by the training forward: what `cadre score` prints and what a
// server must return bit for bit for the same weights.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "core/status.h"
#include "model/batch.h"
#include "model/decoder.h"

namespace cadre {

// kInvalidArgument: no ids, an id outside the vocabulary, more ids than the model has positions.
absl::Status CheckTokens(const Decoder& decoder, std::span<const int32_t> ids);

struct Scores {
  Tensor hidden;    // [T, D], for ops::Logits with decoder.head()
  Tensor logprobs;  // [T] fp32 (f64): token t's after those before it in its sequence; 0 for firsts
};

// batch: over itself (no cache). ctx.tape is left out of it.
Scores ScoreBatch(Context& ctx, const Decoder& decoder, const Batch& batch);

}  // namespace cadre
