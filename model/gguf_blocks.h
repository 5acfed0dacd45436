// The blocks of GGUF's types, row by row: to integers and to floats.
#pragma once

#include "core/context.h"
#include "core/quantized.h"
#include "model/gguf.h"

namespace cadre {

// Room for n rows of a quantized type: Q8_0 and Q4_0 have one f16 scale for 32 elements and keep
// it; of Q4_K scale and minimum of each 32, of Q6_K the scale of each 16 are products of two, which
// are rounded to f16.
QuantizedRows EmptyGgufRows(Context& ctx, GgufType type, int64_t n, int64_t k);
void UnpackGgufRow(GgufType type, const std::byte* row, int64_t to, QuantizedRows* rows);

// Any type's row, as the format defines it.
void GgufRowToFloats(GgufType type, const std::byte* row, int64_t k, float* to);

}  // namespace cadre
