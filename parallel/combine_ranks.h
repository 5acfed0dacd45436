// What ops whose rows are cut over ranks put together through (core/ops/combine_ranks.h). Both are
// empty, so the op is one process's, where `group` is null or of size 1; both block. A failure is
// recorded in ctx.groups (groups.h), which must be there; the op then goes on with this rank's own
// numbers. Labels borrow their text, which lives as long as the tape.
#pragma once

#include "core/ops/combine_ranks.h"
#include "parallel/groups.h"

namespace cadre {

// Sums over the group: of a norm's squares (RmsNormArgs), of a segment's counts (BalanceLossArgs).
ops::CombineRanks SumOver(Communicator* group, const OpLabel& label);

// Puts the maxima, sums of exponentials and target logits of vocabulary parts together
// (CrossEntropyRowsArgs) with one all-gather.
ops::CombineRanks FoldSoftmaxOver(Communicator* group, const OpLabel& label);

}  // namespace cadre
