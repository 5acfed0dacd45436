// bf16 products on AMX tiles, where MachineBf16Kernel() is kAmx.

#include <algorithm>
#include <array>
#include <span>

#include "core/ops/avx512-inl.h"
#include "core/ops/gemm_kernels.h"

namespace cadre::ops {
namespace {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;  // k of one tile product
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kStripRows = 2 * kTileRows;
constexpr int64_t kStepBytes = 2 * kTileBytes;  // of a strip

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0-3: sums (left block, right block); 4, 5: left; 6, 7: panels.
void Configure(int64_t rows) {
  TileConfig config;
  const int64_t top = std::min(rows, kTileRows), bottom = std::max<int64_t>(rows - kTileRows, 1);
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    bool lower = tile == 2 || tile == 3 || tile == 5;
    config.rows[tile] = static_cast<uint8_t>(tile >= 6 ? kTileRows : lower ? bottom : top);
  }
  // GCC 12's intrinsic tells the compiler of the first 8 bytes only.
  asm volatile("" : : "m"(config));
  _tile_loadconfig(&config);
}

struct Steps {
  int64_t begin, end;
};

// Adds the products of some steps to the sums of kBlocks blocks of 16 rows x kPanels panels; the
// first steps start from zero.
template <int kBlocks, int kPanels>
void Sum(const std::byte* left, Steps steps, const std::byte* panel0, const std::byte* panel1,
         float (*sums)[256]) {
  if (steps.begin == 0) {
    _tile_zero(0);
    if constexpr (kPanels == 2) _tile_zero(1);
    if constexpr (kBlocks == 2) _tile_zero(2);
    if constexpr (kBlocks == 2 && kPanels == 2) _tile_zero(3);
  } else {
    _tile_loadd(0, sums[0], 64);
    if constexpr (kPanels == 2) _tile_loadd(1, sums[1], 64);
    if constexpr (kBlocks == 2) _tile_loadd(2, sums[2], 64);
    if constexpr (kBlocks == 2 && kPanels == 2) _tile_loadd(3, sums[3], 64);
  }
  for (int64_t s = steps.begin; s < steps.end; ++s) {
    _tile_loadd(4, left + s * kStepBytes, 64);
    _tile_loadd(6, panel0 + s * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, panel1 + s * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kBlocks == 2) {
      _tile_loadd(5, left + s * kStepBytes + kTileBytes, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kBlocks == 2 && kPanels == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums[0], 64);
  if constexpr (kPanels == 2) _tile_stored(1, sums[1], 64);
  if constexpr (kBlocks == 2) _tile_stored(2, sums[2], 64);
  if constexpr (kBlocks == 2 && kPanels == 2) _tile_stored(3, sums[3], 64);
}

// One strip of at most 32 rows of a block, with its sums of one pair of panels.
struct Strip {
  const std::byte* left;
  int64_t row, rows;
  alignas(64) float sums[4][256];
};

// 32 rows of k elements (fewer: zeros) as a strip of tiles.
void PackStrip(const std::byte* rows, int64_t count, int64_t k, std::byte* to) {
  const int64_t row_bytes = k * 2;
  for (int64_t begin = 0; begin < row_bytes; begin += 64, to += kStepBytes) {
    const __mmask32 mask = ColumnMask((row_bytes - begin) / 2);
    for (int64_t r = 0; r < kStripRows; ++r) {
      const __m512i line = r < count ? _mm512_maskz_loadu_epi16(mask, rows + r * row_bytes + begin)
                                     : _mm512_setzero_si512();
      _mm512_store_si512(to + r * 64, line);
    }
  }
}

void AddSteps(Strip& strip, Steps steps, const std::byte* panel0, const std::byte* panel1) {
  const bool two_blocks = strip.rows > kTileRows, two_panels = panel1 != nullptr;
  if (two_blocks && two_panels) return Sum<2, 2>(strip.left, steps, panel0, panel1, strip.sums);
  if (two_blocks) return Sum<2, 1>(strip.left, steps, panel0, nullptr, strip.sums);
  if (two_panels) return Sum<1, 2>(strip.left, steps, panel0, panel1, strip.sums);
  Sum<1, 1>(strip.left, steps, panel0, nullptr, strip.sums);
}

void StoreStrip(const PanelGemmArgs& args, const Strip& strip, int64_t panel, bool pair) {
  const int64_t column = panel * kPanelColumns;
  const int64_t width = std::min((pair ? 2 : 1) * kPanelColumns, args.b.n - column);
  for (int64_t r = 0; r < strip.rows; r += kTileRows) {
    const float(*sums)[256] = strip.sums + r / kTileRows * 2;
    StoreRows(args,
              {.first = sums[0],
               .second = sums[1],
               .row_stride = kPanelColumns,
               .row = strip.row + r,
               .rows = std::min(kTileRows, strip.rows - r)},
              column, width);
  }
}

// All strips of the block meet one pair of panels. The pair is taken in pieces of k that stay in
// the first-level cache while the strips pass; the sums wait in memory between the pieces.
void StripsByPair(const PanelGemmArgs& args, std::span<Strip> strips, int64_t panel, bool pair) {
  constexpr int64_t kStepsInCache = 8;  // 16 KiB of a pair
  const std::byte* data = args.b.data.raw() + panel * args.b.panel_bytes();
  const std::byte* second = pair ? data + args.b.panel_bytes() : nullptr;
  const int64_t total = args.b.k_padded / kTileDepth;
  int64_t configured = 0;
  for (int64_t begin = 0; begin < total; begin += kStepsInCache) {
    const Steps steps{begin, std::min(begin + kStepsInCache, total)};
    for (Strip& strip : strips) {
      if (strip.rows != configured) Configure(strip.rows);
      configured = strip.rows;
      AddSteps(strip, steps, data, second);
      if (steps.end == total) StoreStrip(args, strip, panel, pair);
    }
  }
}

}  // namespace

void GemmBlockAmx(const PanelGemmArgs& args, const GemmBlock& block, std::byte* scratch) {
  std::array<Strip, kMaxBlockRows / kStripRows> all;
  const std::span<Strip> strips(all.data(), (block.rows + kStripRows - 1) / kStripRows);
  const int64_t strip_bytes = args.b.k_padded / kTileDepth * kStepBytes;
  for (size_t i = 0; i < strips.size(); ++i) {
    Strip& strip = strips[i];
    strip.row = block.row + static_cast<int64_t>(i) * kStripRows;
    strip.rows = std::min(kStripRows, block.row + block.rows - strip.row);
    std::byte* packed = scratch + static_cast<int64_t>(i) * strip_bytes;
    strip.left = packed;
    if (args.a.transposed) {
      const BF16* data = reinterpret_cast<const BF16*>(args.a.data);
      TransposeStripAvx512(data, args.b.k, args.a.rows, strip.row, packed);
    } else {
      PackStrip(args.a.data + strip.row * args.b.k * 2, strip.rows, args.b.k, packed);
    }
  }
  const int64_t end = block.panel + block.panels;
  for (int64_t panel = block.panel; panel < end; panel += 2) {
    StripsByPair(args, strips, panel, panel + 1 < end);
  }
  _tile_release();
}

}  // namespace cadre::ops
