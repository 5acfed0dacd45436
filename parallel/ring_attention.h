// Ring attention (Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite
// Context", 2023): context-parallel ranks hand their keys and values around, each computes what its
// queries get of those that it has, and puts the parts together by their log-sum-exps. No rank ever
// holds all keys; in return the parts are put together in an order of the rank's own, so results
// are not the canonical attention's bits (core/ops/attention.h) but agree with them within fp32's
// rounding.
//
// The backward pass sends keys and values around once more, and their gradients, in fp32 (f64),
// with them: each rank adds its part, and they arrive at home complete. What travels does so while
// the rank computes.
#pragma once

#include <memory>
#include <vector>

#include "core/tape.h"
#include "parallel/groups.h"

namespace cadre {

// By rank: the tokens that it has of each sequence, S of them, all ranks equally many.
struct RingShares {
  std::vector<std::vector<int32_t>> offsets;    // [S + 1] each
  std::vector<std::vector<int32_t>> positions;  // [T] each: in the sequence, ascending
};

struct RingAttentionArgs {
  double scale = 1;
  int sliding_window = 0;  // 0: none
  std::shared_ptr<const RingShares> shares;
  Communicator* group = nullptr;
  OpLabel label;  // borrows its text, which lives as long as the tape
};

// q [T, H, dh], k [T, K, dh], v [T, K, dv] of the rank's tokens -> [T, H, dv]. A failure is
// recorded in ctx.groups.
Var RingAttention(Context& ctx, const Var& q, const Var& k, const Var& v,
                  const RingAttentionArgs& args);

}  // namespace cadre
