// Dropout (Srivastava et al., 2014): an element is zero with probability `rate`, else divided by
// 1 - rate. Whether it is kept is a function of (ctx.seed, ctx.step, site, global token, column)
// alone, so every layout, thread count and restart drops the same elements.
#pragma once

#include "core/tape.h"

namespace cadre::ops {

struct DropoutArgs {
  double rate = 0.0;  // [0, 1)
  uint32_t site = 0;  // which dropout of the model this is, e.g. 2 * layer + 1
  Tensor tokens;      // i64 [T]: each row's index in the step's global batch
};

// x [T, D] -> [T, D]. The identity where rate is 0 or there is no tape (inference).
Var Dropout(Context& ctx, const Var& x, const DropoutArgs& args);

}  // namespace cadre::ops
