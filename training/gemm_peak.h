// The rate of this process's own matrix products, the ceiling that MFU is a share of.
#pragma once

#include "core/context.h"

namespace cadre {

// FLOP/s of a packed product of 1,024 cubed in `compute` on ctx.threads: the best of a few, some
// ten milliseconds in all. What would take seconds, and f64, the reference path, is timed at 128
// cubed.
double MeasureGemmPeak(Context& ctx, DType compute);

}  // namespace cadre
