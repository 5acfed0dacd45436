// A sequence's pooled hidden state, the embedding of its prompt: the mean of the decoder's outputs
// after the final norm over all prompt tokens, or the last one's.
//
// Sums are in double in the order of the tokens, so chunks, batches and preemptions change no bit.
// Engine thread only. D model.
#pragma once

#include "core/context.h"
#include "core/tensor.h"
#include "serving/sequence.h"

namespace cadre {

// Takes in the hidden states [n, D] of the chunk's PooledRows (step_plan.h), n > 0; with the
// prompt's last one the sequence's first event has its embedding.
void PoolHidden(Context& ctx, const ScheduledChunk& chunk, const Tensor& hidden);

}  // namespace cadre
