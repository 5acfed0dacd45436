// From the decoder's hidden states to the logits that the sampler reads.
//
// Run by the engine's thread; the context's workers share the rows. T tokens, D model, V
// vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/tensor.h"

namespace cadre {

class Decoder;

// fp32 logits of hidden rows (the reference path's f64 rounded), and the log-sum-exp of each.
struct LogitRows {
  Tensor logits = {};           // [rows, V]
  std::vector<float> lse = {};  // [rows]

  std::span<const float> row(int64_t i) const {
    return {logits.data<float>() + i * logits.dim(1), static_cast<size_t>(logits.dim(1))};
  }
};

// The given rows of hidden [T, D], copied end to end: [rows, D]. Each is 0 to T - 1.
Tensor GatherRows(Context& ctx, const Tensor& hidden, std::span<const int64_t> rows);

// The logits of every row of hidden [rows, D], the same bits as the loss computes. Where
// tensor-parallel ranks share the vocabulary all of them call; the first one gets the rows, which
// are zeros where that fails (parallel/groups.h), the others nothing.
LogitRows ComputeLogits(Context& ctx, const Decoder& decoder, const Tensor& hidden);

}  // namespace cadre
