// Between floats and the integers of core/quantized.h. Rows are quantized one by one, so a matrix
// has the same codes whether it is quantized whole or in runs of rows. All functions may run on any
// thread with a Context of its own.
#pragma once

#include <string_view>
#include <vector>

#include "core/context.h"
#include "core/quantized.h"
#include "core/status.h"

namespace cadre::ops {

// Of k, in WeightFormat::kInt4: at 64 the error of a normal matrix is 9 % larger, for 6 % fewer
// bytes.
inline constexpr int64_t kInt4Group = 32;

// w: [N, K] f32 or bf16. kInt8: scale = max |w| of the row / 127, codes rounded to nearest. kInt4:
// the scale puts the group's largest element (its sign included) at -8; of that scale and smaller
// ones, which clip it, the one of the least squared error. A scale is NaN where an element is no
// finite number, or larger than kInt4 can say: whoever quantizes asks CheckScales.
QuantizedRows QuantizeRows(Context& ctx, const Tensor& w, WeightFormat format);

// kDataLoss names what has a scale that is no finite number.
absl::Status CheckScales(std::string_view name, const Tensor& scales);
absl::Status CheckScales(std::string_view name, const QuantizedParam& param);

// `parts` one below the other, all with the same K, bits, group, zero, and mins or none.
QuantizedMatrix PackQuantized(Context& ctx, const std::vector<QuantizedRows>& parts);

// A parameter's matrix [N, K] or stack [E, N, K] at once; format is not kStored.
QuantizedParam QuantizeParam(Context& ctx, const Tensor& w, WeightFormat format);

// Elements [row, row + 1) x [0, k) in double precision; what the kernels multiply by, exactly.
void DequantizeRow(const QuantizedMatrix& matrix, int64_t row, double* to);

// The whole of consecutive runs of rows as [N, K] of `dtype` (f64, f32 or bf16).
Tensor Dequantize(Context& ctx, const std::vector<QuantizedMatrix>& runs, DType dtype);

}  // namespace cadre::ops
