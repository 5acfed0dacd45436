// What the rank computes, told to its flight recorder (ParallelGroups::recorder) for reports of
// hangs; nothing where there is none. On the rank's computing thread.
#pragma once

#include <string_view>

#include "core/context.h"
#include "core/tape.h"

namespace cadre {

void RecordActivity(const Context& ctx, std::string_view activity, int layer);

// From now on the rank is in the forward of `layer`; -1: of what is outside the layers.
void RecordForward(const Context& ctx, int layer);
// Once the backward pass has reached x, the rank is in the backward of `layer`. On the tape.
void RecordBackwardFrom(Context& ctx, const Var& x, int layer);

}  // namespace cadre
