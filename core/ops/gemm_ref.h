// The double-precision product of gemm.h, in plain loops.
#pragma once

#include "core/ops/gemm.h"

namespace cadre::ops {

void GemmReference(Context& ctx, const GemmArgs& args);

}  // namespace cadre::ops
