// Elementwise ops: y = a + b, y = factor * x, y = x in another dtype.
#pragma once

#include "core/tape.h"

namespace cadre::ops {

// a and b have the same shape and dtype.
Var Add(Context& ctx, const Var& a, const Var& b);
Var Scale(Context& ctx, const Var& x, float factor);
Var Cast(Context& ctx, const Var& x, DType dtype);

// Tensor forms, without a gradient.
Tensor CastTensor(Context& ctx, const Tensor& x, DType dtype);
// to[i] = from[i] in to's dtype; same element count.
void ConvertInto(Context& ctx, const Tensor& from, const Tensor& to);

// Tape::Accumulate: into += add; where into's storage is shared, into becomes a fresh tensor.
void Accumulate(Context& ctx, Tensor& into, const Tensor& add);

}  // namespace cadre::ops
