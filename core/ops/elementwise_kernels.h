// Kernels of elementwise.h; n elements each.
#pragma once

#include "core/context.h"

namespace cadre::ops {

void AddReference(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y);
void AddCpu(Context& ctx, const Tensor& a, const Tensor& b, const Tensor& y);
void ScaleReference(Context& ctx, const Tensor& x, double factor, const Tensor& y);
void ScaleCpu(Context& ctx, const Tensor& x, float factor, const Tensor& y);
// Between f32, bf16 and f16.
void ConvertCpu(Context& ctx, const Tensor& from, const Tensor& to);

}  // namespace cadre::ops
