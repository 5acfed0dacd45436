// The element types of production kernels: f32, bf16, f16. f64 is the reference path's alone.
#pragma once

#include <utility>

#include "core/dtype.h"

namespace cadre::ops {

// Calls visitor(T{}) with the C++ type of `dtype`.
template <typename Visitor>
void VisitComputeType(const char* op, DType dtype, Visitor&& visitor) {
  switch (dtype) {
    case DType::kF32:
      return visitor(float{});
    case DType::kBF16:
      return visitor(BF16{});
    case DType::kF16:
      return visitor(F16{});
    default:
      CADRE_CHECK(false, "{} of dtype {}", op, static_cast<int>(dtype));
  }
}

}  // namespace cadre::ops
