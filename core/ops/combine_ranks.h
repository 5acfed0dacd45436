// CombineRanks: how an op whose rows are cut over ranks puts together what each rank knows of them.
// An op knows no ranks: who cuts its weights hands this in (parallel/combine_ranks.h); an empty one
// means that this process has it all.
#pragma once

#include <functional>

#include "core/context.h"

namespace cadre::ops {

// Replaces each rank's partial numbers by those of all ranks, in place. Called by the thread of the
// context, outside parallel regions, the same number of times on every rank.
using CombineRanks = std::function<void(Context& ctx, const Tensor& partial)>;

}  // namespace cadre::ops
