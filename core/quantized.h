// Matrices kept for products alone, most of them as small integers with scales instead of floats:
// what they are and how they lie. Who makes and multiplies them: core/ops/quantize.h,
// core/ops/gemm_quant.h.
//
// Element (n, k) of a matrix [N, K] is (code - zero) * scale[n, k / group] - min[n, k / group]; of
// one of 16 or 32 bits it is the code, a bf16 or fp32.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace cadre {

// How projections are kept.
enum class WeightFormat : uint8_t {
  kStored,  // as the model's files have them
  kInt8,    // -127 to 127, one fp32 scale a row
  kInt4,    // -8 to 7, one f16 scale for 32 neighbours of a row
  // The floats themselves, but as products read them alone (core/ops/gemm_panels.h), heads too:
  // half the memory of floats that are packed beside. Logprobs have kStored's bits.
  kPanels,
};

// Row by row, as files have them.
struct QuantizedRows {
  int64_t n = 0, k = 0;
  int bits = 8;
  int64_t group = 0;  // of k, a multiple of 16; 0: the whole row
  int zero = 0;       // the code that means 0
  Tensor codes;       // i8 [n, k], also where bits is 4
  Tensor scales;      // [n, groups]: f16, or f32 where the group is the whole row
  Tensor mins;        // as scales; undefined: none

  int64_t groups() const { return group == 0 ? 1 : (k + group - 1) / group; }
};

// Cut into panels of 16 rows (the columns of the product's right-hand matrix), each contiguous:
//
//   8 bits: [N / 16][K][16]             signed bytes
//   4 bits: [N / 16][K / 8][16][2][4]   nibbles, unsigned: of eight neighbours in k, word [p] of a
//                                       row has k = p, p + 2, p + 4, p + 6 from its lowest bits up
//   16, 32 bits: as core/ops/gemm_panels.h has them
//   scales, mins: [N / 16][groups][16]
//
// N is rounded up to 16 and K, but for 32 bits, to 32 with elements that are 0.
struct QuantizedMatrix {
  int64_t n = 0, k = 0, k_padded = 0;
  int bits = 8;
  int64_t group = 0;  // k_padded where a row has one scale
  int zero = 0;
  Tensor codes;   // bytes
  Tensor scales;  // f16, or f32 where the group is k_padded; undefined: floats
  Tensor mins;

  bool floats() const { return bits >= 16; }
  int64_t panels() const { return (n + 15) / 16; }
  int64_t groups() const { return (k_padded + group - 1) / group; }
  int64_t panel_bytes() const { return k_padded * 2 * bits; }
  size_t bytes() const {
    return codes.bytes() + (scales.defined() ? scales.bytes() : 0) +
           (mins.defined() ? mins.bytes() : 0);
  }
};

// A parameter: one matrix, or one of each expert. A matrix is runs of rows, one after the other,
// that may be kept differently.
using QuantizedParam = std::vector<std::vector<QuantizedMatrix>>;

}  // namespace cadre
