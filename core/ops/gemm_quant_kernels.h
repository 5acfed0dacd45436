// The kernels behind gemm_quant.h. Private to core/ops.
#pragma once

#include "core/ops/gemm_kernels.h"
#include "core/quantized.h"

namespace cadre::ops {

// A block of one run of rows. `gemm` is the product as the kernels of floats see it: its b has the
// whole product's n, k and k_padded, and no data.
struct QuantBlock {
  const PanelGemmArgs& gemm;
  const QuantizedMatrix& weights;
  int64_t column;   // of c, where the run begins
  GemmBlock block;  // panels of the run
};

// Bytes of `scratch` for blocks of at most `rows` rows.
int64_t QuantScratchBytes(const QuantizedMatrix& weights, int64_t rows, Bf16Kernel kernel);
void GemmBlockQuantAvx512(const QuantBlock& quant, std::byte* scratch);
void GemmBlockQuantSimd(const QuantBlock& quant, std::byte* scratch);

}  // namespace cadre::ops
