// bf16 products with AVX-512's dot products of pairs.
//
// A strip of 16 rows meets a pair of panels in two halves of 8 x 32 sums: 16 accumulators hide the
// latency of two products a cycle and need ten loads for sixteen of them. The pair is taken in
// pieces of k that stay in the first-level cache while the strips of the block, in the second,
// pass by; the sums wait in memory between the pieces.
#include "core/ops/gemm_strips_avx512-inl.h"

namespace cadre::ops {
namespace {

constexpr int64_t kStepsInCache = 128;

// Equal pieces of at most kStepsInCache.
int64_t PieceOf(int64_t total) {
  const int64_t pieces = (total + kStepsInCache - 1) / kStepsInCache;
  return (total + pieces - 1) / pieces;
}

struct Steps {
  int64_t begin, end;
};

// Adds the products of some steps to the sums of kRows rows x kPanels panels; the first steps start
// from zero.
template <int kRows, int kPanels>
void Sum(const Left& left, Steps steps, const std::byte* panel, size_t panel_bytes,
         float (*sums)[2][kPanelColumns]) {
  __m512 acc[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      acc[r][p] = steps.begin == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sums[r][p]);
    }
  }
  const std::byte* pairs = left.data + steps.begin * left.step;
  for (int64_t s = steps.begin; s < steps.end; ++s, pairs += left.step) {
    __m512bh right[kPanels];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) {
      right[p] = LoadPairs(panel + static_cast<size_t>(p) * panel_bytes + s * kStepBytes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh pair = BroadcastPair(pairs + r * 4);
#pragma GCC unroll 2
      for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], pair, right[p]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) _mm512_store_ps(sums[r][p], acc[r][p]);
  }
}

using SumFunction = void (*)(const Left&, Steps, const std::byte*, size_t,
                             float (*)[2][kPanelColumns]);

SumFunction SumOf(int64_t rows, bool pair) {
  static constexpr SumFunction kOne[] = {Sum<1, 1>, Sum<2, 1>, Sum<3, 1>, Sum<4, 1>,
                                         Sum<5, 1>, Sum<6, 1>, Sum<7, 1>, Sum<8, 1>};
  static constexpr SumFunction kTwo[] = {Sum<1, 2>, Sum<2, 2>, Sum<3, 2>, Sum<4, 2>,
                                         Sum<5, 2>, Sum<6, 2>, Sum<7, 2>, Sum<8, 2>};
  return (pair ? kTwo : kOne)[rows - 1];
}

void AddSteps(Strip& strip, Steps steps, const std::byte* panel, size_t panel_bytes, bool pair) {
  for (int64_t half = 0; half < strip.rows; half += kHalfRows) {
    const SumFunction sum = SumOf(std::min(kHalfRows, strip.rows - half), pair);
    sum({strip.left.data + half * 4, strip.left.step}, steps, panel, panel_bytes,
        strip.sums + half);
  }
}

// All strips of the block meet one pair of panels.
void StripsByPair(const PanelGemmArgs& args, std::span<Strip> strips, int64_t panel, bool pair) {
  const size_t panel_bytes = args.b.panel_bytes();
  const std::byte* data = args.b.data.raw() + static_cast<size_t>(panel) * panel_bytes;
  const int64_t column = panel * kPanelColumns;
  const int64_t width = std::min((pair ? 2 : 1) * kPanelColumns, args.b.n - column);
  const int64_t total = args.b.k_padded / 2;
  const int64_t piece = strips.size() == 1 ? total : PieceOf(total);
  for (int64_t begin = 0; begin < total; begin += piece) {
    const Steps steps{begin, std::min(begin + piece, total)};
    for (Strip& strip : strips) {
      if (steps.end == total) PrefetchRows(args, strip.row, strip.rows, column, width);
      AddSteps(strip, steps, data, panel_bytes, pair);
      if (steps.end < total) continue;
      StoreRows(args,
                {.first = strip.sums[0][0],
                 .second = strip.sums[0][1],
                 .row_stride = 2 * kPanelColumns,
                 .row = strip.row,
                 .rows = strip.rows},
                column, width);
    }
  }
}

}  // namespace

void GemmBlockAvx512(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch) {
  std::array<Strip, kMaxBlockRows / kStripRows> all;
  const std::span<Strip> strips = MakeStrips(args, block, scratch, all);
  if (block.rows == 1 && !args.a.transposed && args.b.k == args.b.k_padded) {
    strips[0].left = {args.a.data + block.row * args.b.k * 2, 4};
  } else {
    PackStrips(args, block, strips, scratch);
  }
  const int64_t end = block.panel + block.panels;
  for (int64_t panel = block.panel; panel < end; panel += 2) {
    StripsByPair(args, strips, panel, panel + 1 < end);
  }
}

}  // namespace cadre::ops
