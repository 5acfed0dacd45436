// How many tokens a step may compute, from the machine.
//
// A product with few rows takes as long as reading its weights; arithmetic takes longer than that
// from the ridge on, and then the time grows with the rows (Williams et al., "Roofline", CACM
// 2009). Up to the ridge the tokens of prompts ride along with those that decode for nearly
// nothing; far beyond it whoever decodes waits for the prompts of others.
#pragma once

#include <cstdint>
#include <span>

#include "core/context.h"
#include "model/model.h"
#include "serving/serving_ranks.h"

namespace cadre {

struct RowTime {
  int64_t rows = 0;
  double seconds = 0;
};

// The rows at which the time is half as long again as that of the first entry: where arithmetic
// takes as long as reading, kernels that do both at once take between one and two times that;
// between two entries by a straight line, the last entry's where it never is.
// times: by ascending rows, at least one.
int64_t RidgeOf(std::span<const RowTime> times);

// What products of the model's matrices reach, of all ranks together; 0: was not measured.
struct MachinePeaks {
  double flops_per_second = 0;
  double bytes_per_second = 0;
};
// times: of products with matrices of so many elements and bytes together.
MachinePeaks PeaksOf(std::span<const RowTime> times, double elements, double bytes);

// The ridge of this rank's projections in tokens of a step: one token has a row in each, but for
// experts, of which it has top_k. Takes about a twentieth of a second beside packing the weights
// that it multiplies with into ctx.packed. The caller alone uses ctx meanwhile.
struct MeasuredRidge {
  int64_t tokens = 0;
  MachinePeaks peaks;  // this rank's
};
MeasuredRidge MeasureRidge(Context& ctx, const Model& model);

struct TokenBudget {
  int64_t step = 0;   // tokens of any step
  int64_t mixed = 0;  // up to which prompts fill a step in which sequences decode
  int64_t ridge = 0;  // 0: was not measured
  MachinePeaks peaks;
};
struct TokenBudgetOptions {
  int64_t max_num_batched_tokens = 0;  // 0: measured
  int64_t max_num_mixed_tokens = 0;    // 0: the ridge, or max_num_batched_tokens where that is set
  int max_num_seqs = 0;
  ServingRanks* ranks = nullptr;  // all of them call at the same time, and have the same
};
// Measured, mixed is the ridge, so that such a step takes about half as long again as one that
// decodes a single token. Where nobody's next token waits for it, a step has six times that; in any
// case there is room for max_num_seqs tokens and those of prompts. Errors as ServingRanks'.
absl::StatusOr<TokenBudget> ChooseTokenBudget(Context& ctx, const Model& model,
                                              const TokenBudgetOptions& options);

}  // namespace cadre
