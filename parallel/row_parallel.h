// What the end of a row-parallel product needs: each rank's result is a part of a sum, to which a
// bias is added once.
#pragma once

#include "core/tape.h"
#include "parallel/groups.h"

namespace cadre {

inline Communicator* TensorGroup(const Context& ctx) {
  return ctx.groups == nullptr ? nullptr : ctx.groups->tp;
}

// `bias` on the group's first rank, kNoParam on the others, where the tape reports it as a
// parameter that gets nothing from this use. kNoParam stays that.
ParamId BiasOnce(Context& ctx, ParamId bias, const Communicator* group);
inline ParamId BiasOnce(Context& ctx, ParamId bias) {
  return BiasOnce(ctx, bias, TensorGroup(ctx));
}

}  // namespace cadre
