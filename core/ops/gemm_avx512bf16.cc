// bf16 products with AVX-512's dot products of pairs.
//
// A strip of 16 rows meets a pair of panels in two halves of 8 x 32 sums: 16 accumulators hide the
// latency of two products a cycle and need ten loads for sixteen of them. The pair is taken in
// pieces of k that stay in the first-level cache while the strips of the block, in the second,
// pass by; the sums wait in memory between the pieces, and each pass asks for a share of the next.
#include "core/ops/gemm_strips_avx512-inl.h"

namespace cadre::ops {
namespace {

constexpr int64_t kStepsInCache = 128;
constexpr int64_t kNear = 4096;  // bytes

// Equal pieces of at most kStepsInCache.
int64_t PieceOf(int64_t total) {
  const int64_t pieces = (total + kStepsInCache - 1) / kStepsInCache;
  return (total + pieces - 1) / pieces;
}

struct Steps {
  int64_t begin, end;
};

// What a pass over a piece of panels asks for while it multiplies: its share of what comes next,
// `stride` bytes on with each step. So memory is read evenly, not in the first of the passes alone.
// The only pass asks for both panels, `second` bytes apart.
struct Ahead {
  const std::byte* data;
  int64_t stride;
  int64_t second = 0;
};

// Adds the products of some steps to the sums of kRows rows x kPanels panels; the first steps start
// from zero. kOnly: no other pass asks for what comes next.
template <int kRows, int kPanels, bool kOnly>
void Sum(const Left& left, Steps steps, const std::byte* panel, size_t panel_bytes, Ahead ahead,
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
    if constexpr (kRows > 1 || !kOnly) {
      __builtin_prefetch(ahead.data);
      if constexpr (kOnly && kPanels > 1) __builtin_prefetch(ahead.data + ahead.second);
      ahead.data += ahead.stride;
    }
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

using SumFunction = void (*)(const Left&, Steps, const std::byte*, size_t, Ahead,
                             float (*)[2][kPanelColumns]);

template <int kPanels, bool kOnly>
SumFunction SumOf(int64_t rows) {
  static constexpr SumFunction kSums[] = {Sum<1, kPanels, kOnly>, Sum<2, kPanels, kOnly>,
                                          Sum<3, kPanels, kOnly>, Sum<4, kPanels, kOnly>,
                                          Sum<5, kPanels, kOnly>, Sum<6, kPanels, kOnly>,
                                          Sum<7, kPanels, kOnly>, Sum<8, kPanels, kOnly>};
  return kSums[rows - 1];
}

SumFunction SumOf(int64_t rows, bool pair, bool only) {
  if (only) return pair ? SumOf<2, true>(rows) : SumOf<1, true>(rows);
  return pair ? SumOf<2, false>(rows) : SumOf<1, false>(rows);
}

int64_t PassesOf(const Strip& strip) { return (strip.rows + kHalfRows - 1) / kHalfRows; }

// A piece of a panel or of two, met by all strips of a block in passes of up to kHalfRows rows.
struct Piece {
  const std::byte* panel;
  size_t panel_bytes;
  bool pair;
  int64_t passes = 0;
  Steps steps = {};
  const std::byte* next = nullptr;  // where the piece begins that comes next

  // Half of the passes ask for the next piece of the first panel, half for that of the second. An
  // only pass reads memory as it goes, and asks for what is near.
  Ahead AheadOf(int64_t pass) const {
    if (passes == 1) {
      return {panel + steps.begin * kStepBytes + kNear, kStepBytes,
              static_cast<int64_t>(panel_bytes)};
    }
    const int64_t half = std::max<int64_t>(1, passes / 2);
    const int64_t bytes = (steps.end - steps.begin) * kStepBytes;
    const int64_t second = pass >= half ? static_cast<int64_t>(panel_bytes) : 0;
    return {next + second + pass % half * bytes / half, kStepBytes / half};
  }
};

void AddPiece(Strip& strip, const Piece& piece, int64_t pass) {
  const int64_t passes = PassesOf(strip), rows = (strip.rows + passes - 1) / passes;
  for (int64_t row = 0; row < strip.rows; row += rows) {
    const SumFunction sum = SumOf(std::min(rows, strip.rows - row), piece.pair, piece.passes == 1);
    sum({strip.left.data + row * 4, strip.left.step}, piece.steps, piece.panel, piece.panel_bytes,
        piece.AheadOf(pass++), strip.sums + row);
  }
}

// All strips of the block meet one pair of panels.
void StripsByPair(const PanelGemmArgs& args, std::span<Strip> strips, int64_t panel, bool pair) {
  const size_t panel_bytes = args.b.panel_bytes();
  const std::byte* data = args.b.data.raw() + static_cast<size_t>(panel) * panel_bytes;
  const int64_t column = panel * kPanelColumns;
  const int64_t width = std::min((pair ? 2 : 1) * kPanelColumns, args.b.n - column);
  const int64_t total = args.b.k_padded / 2;
  Piece piece{.panel = data, .panel_bytes = panel_bytes, .pair = pair};
  for (const Strip& strip : strips) piece.passes += PassesOf(strip);
  const int64_t length = piece.passes == 1 ? total : PieceOf(total);
  for (int64_t begin = 0; begin < total; begin += length) {
    piece.steps = {begin, std::min(begin + length, total)};
    const bool last = piece.steps.end == total;
    piece.next = data + (last ? (pair ? 2 : 1) * static_cast<int64_t>(panel_bytes)
                              : piece.steps.end * kStepBytes);
    int64_t pass = 0;
    for (Strip& strip : strips) {
      if (last) PrefetchRows(args, strip.row, strip.rows, column, width);
      AddPiece(strip, piece, pass);
      pass += PassesOf(strip);
      if (!last) continue;
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
  } else if (!block.packed) {
    PackStrips(args, block, strips, scratch);
  }
  const int64_t end = block.panel + block.panels;
  for (int64_t panel = block.panel; panel < end; panel += 2) {
    StripsByPair(args, strips, panel, panel + 1 < end);
  }
}

}  // namespace cadre::ops
