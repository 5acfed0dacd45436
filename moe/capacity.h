// Expert capacity (Lepikhin et al., "GShard", 2020): a bound on the tokens that one expert is
// given, so that a crowded expert costs quality instead of time. An option; without it no token is
// dropped.
//
// Of the T tokens that a rank routes in one forward pass, each expert takes the first C that chose
// it, in the tokens' order, with
//   C = ceil(factor * T * k / E)
// for E experts of which each token chooses k. What is over capacity is dropped: the token keeps
// its other experts with the weights that it gave them, and the residual stream goes past the
// layer. Which tokens a rank routes together is the layout's doing, so other layouts drop others;
// under one layout the same ones are dropped every time. Balance losses, expert counts and the
// router's bias see what was chosen, dropped or not.
//
// Callable from any thread with a Context of its own.
#pragma once

#include "core/context.h"

namespace cadre::moe {

struct CappedIds {
  Tensor ids;           // i32 [T, k]: as given, with ops::kDropped for what was dropped
  int64_t dropped = 0;  // how many those are
};

// ids i32 [T, k], each in [0, experts); factor > 0.
CappedIds DropOverCapacity(Context& ctx, const Tensor& ids, int64_t experts, double factor);

}  // namespace cadre::moe
