// Left-hand rows in strips of 16, for the AVX-512 kernels. Included as avx512-inl.h is.
#pragma once

#include <algorithm>
#include <array>
#include <span>

#include "core/ops/avx512-inl.h"
#include "core/ops/gemm_kernels.h"

namespace cadre::ops {
namespace {

constexpr int64_t kStripRows = 16;
constexpr int64_t kHalfRows = 8;
constexpr int64_t kStepBytes = 64;  // two of k by 16 rows or columns

// [k / 2][16 rows][2], or one row as it lies.
struct Left {
  const std::byte* data;
  int64_t step;  // bytes from one pair of k to the next
};

struct Strip {
  Left left;
  int64_t row, rows;
  alignas(64) float sums[kStripRows][2][kPanelColumns];
};

using BlockStrips = std::array<Strip, kMaxBlockRows / kStripRows>;

// The strips of a block, which lie in `scratch` once they are packed.
inline std::span<Strip> MakeStrips(const PanelGemmArgs& args, const GemmBlock& block,
                                   std::byte* scratch, BlockStrips& all) {
  const std::span<Strip> strips(all.data(), (block.rows + kStripRows - 1) / kStripRows);
  const int64_t strip_bytes = args.b.k_padded / 2 * kStepBytes, rows_end = block.row + block.rows;
  for (size_t i = 0; i < strips.size(); ++i) {
    Strip& strip = strips[i];
    strip.row = block.row + static_cast<int64_t>(i) * kStripRows;
    strip.rows = std::min(kStripRows, rows_end - strip.row);
    strip.left = {scratch + static_cast<int64_t>(i) * strip_bytes, kStepBytes};
  }
  return strips;
}

// 16 rows from `row` of the left-hand matrix, and where `next` is given the 16 behind them.
inline void PackTwoStrips(const PanelGemmArgs& args, int64_t row, int64_t rows_end, std::byte* to,
                          std::byte* next) {
  const BF16* data = reinterpret_cast<const BF16*>(args.a.data);
  if (args.a.transposed) {
    return PackPanelsAvx512(data, args.b.k, args.a.rows, row, to, next);
  }
  PackTransposedPanelAvx512(data, args.b.k, rows_end, row, to);
  if (next != nullptr) {
    PackTransposedPanelAvx512(data, args.b.k, rows_end, row + kStripRows, next);
  }
}

inline void PackStrips(const PanelGemmArgs& args, const GemmBlock& block,
                       std::span<const Strip> strips, std::byte* scratch) {
  const int64_t strip_bytes = args.b.k_padded / 2 * kStepBytes;
  for (size_t i = 0; i < strips.size(); i += 2) {
    std::byte* to = scratch + static_cast<int64_t>(i) * strip_bytes;
    std::byte* next = i + 1 < strips.size() ? to + strip_bytes : nullptr;
    PackTwoStrips(args, strips[i].row, block.row + block.rows, to, next);
  }
}

}  // namespace
}  // namespace cadre::ops
