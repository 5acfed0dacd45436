// Rotary positions: each pair (a, b) of a head's rotary elements becomes
//   (a cos - b sin, b cos + a sin)
// with the angle of the token's position; the other elements are copied.
//
//   x [T, N, dh], positions i32 [T] in [0, table.positions()) -> [T, N, dh] in x's dtype
#pragma once

#include "core/ops/rope_table.h"
#include "core/tape.h"

namespace cadre::ops {

struct RopeArgs {
  Tensor positions;
  const RopeTable* table;  // must outlive the tape
  int64_t offset = 0;      // of the first rotary element in a head (MLA rotates the last ones)
};

Var Rope(Context& ctx, const Var& x, const RopeArgs& args);

struct RopeKernelArgs {
  Tensor x;          // [T, N, dh]
  Tensor positions;  // i32 [T]
  const RopeTable* table;
  int64_t offset;
  bool backward;  // by the negative angle: the gradient
  Tensor y;       // [T, N, dh]
};
void RopeReference(Context& ctx, const RopeKernelArgs& args);
void RopeCpu(Context& ctx, const RopeKernelArgs& args);

}  // namespace cadre::ops
