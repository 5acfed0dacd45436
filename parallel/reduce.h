// The arithmetic of reductions: every element over the ranks in their order, in f32 (f64 for f64,
// the type itself for integers, where sums wrap), rounded once.
#pragma once

#include <cstddef>
#include <span>

#include "core/dtype.h"
#include "parallel/communicator.h"

namespace cadre {

// The program's own mistake, whatever group was to do it: an average of integers.
void CheckReduction(DType dtype, ReduceOp op);

// out[i] = sources[0][i] op sources[1][i] op ...; `out` may be one of the sources. All hold `numel`
// elements of `dtype`: f64, f32, bf16, f16 or an integer. Averages are of floating types only, as
// CheckReduction says; a maximum over a NaN is a NaN. Callable from any thread.
void ReduceInRankOrder(DType dtype, ReduceOp op, std::span<const std::byte* const> sources,
                       int64_t numel, std::byte* out);

}  // namespace cadre
