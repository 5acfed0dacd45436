// Columns of a matrix taken apart and put together. Tensors are contiguous, so both copy; a fused
// projection (queries, keys and values; latents and rotary keys) is split with one pass over it.
//
//   SplitColumns:  x [..., sum of sizes] -> one [..., sizes[i]] each
//   ConcatColumns: parts [..., c_i] -> [..., sum of c_i]
//
// Any dtype; the gradient of each is the other (a part that got no gradient counts as zero).
#pragma once

#include <span>
#include <vector>

#include "core/tape.h"

namespace cadre::ops {

// sizes: positive, adding up to x's last dimension.
std::vector<Var> SplitColumns(Context& ctx, const Var& x, std::span<const int64_t> sizes);
// parts: at least one; same dtype and leading dimensions.
Var ConcatColumns(Context& ctx, std::span<const Var> parts);

}  // namespace cadre::ops
