// Products of bf16 rows with quantized panels, by AVX-512's dot products of pairs. Weights are
// widened in registers on their way from memory, again for every strip of rows; a panel's codes
// stay in the first-level cache meanwhile. (Widening a piece once for all strips, into that cache,
// was slower at every number of rows.)
#include "core/ops/gemm_quant_kernels.h"
#include "core/ops/gemm_strips_avx512-inl.h"

namespace cadre::ops {
namespace {

// Rows by panels that meet in registers: sixteen sums. Of eight bits widening costs more, so more
// rows share it; of four the registers would not do for eight rows.
constexpr int64_t kMostRows = 8;
constexpr int64_t kMostPanels = 4;
constexpr int64_t RowsTogether(int bits) { return bits == 4 ? 4 : kMostRows; }
constexpr int64_t PanelsTogether(int64_t rows) { return rows <= 4 ? kMostPanels : 2; }

// bf16 of the nibbles less `zero`; twice, since the lookup takes five bits.
__m512i NibbleTable(int zero) {
  alignas(64) BF16 table[32];
  for (int i = 0; i < 32; ++i) table[i] = BF16(static_cast<float>(i % 16 - zero));
  return _mm512_load_si512(table);
}

// Pairs of k that one load holds.
template <int kBits>
constexpr int kPairs = kBits == 4 ? 4 : 1;

// What one load holds, and pair `index` of it.
template <int kBits>
inline __m512i LoadCodes(const std::byte* from) {
  if constexpr (kBits == 4) return _mm512_loadu_si512(from);
  // Eight significant bits: the fp32 number's upper half is the bf16 number.
  auto wide = [&](const std::byte* at) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
    return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  };
  const __m512i even = _mm512_srli_epi32(wide(from), 16), odd = wide(from + kPanelColumns);
  return _mm512_mask_blend_epi16(0xaaaaaaaau, even, odd);
}

template <int kBits>
inline __m512bh PairOf(__m512i codes, __m512i table, int index) {
  if constexpr (kBits == 8) return reinterpret_cast<__m512bh>(codes);
  const __m512i words = _mm512_srli_epi16(codes, static_cast<unsigned>(4 * index));
  return reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(words, table));
}

__m512 Scales(const Tensor& scales, int64_t at) {
  if (scales.dtype() == DType::kF32) {
    return _mm512_loadu_ps(reinterpret_cast<const float*>(scales.raw()) + at * kPanelColumns);
  }
  const auto* halves = reinterpret_cast<const uint16_t*>(scales.raw()) + at * kPanelColumns;
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

// What the groups of a block's rows sum to: [rows][groups], where the weights have minima.
struct ActivationSums {
  const float* data = nullptr;
  int64_t groups = 0;
  float At(int64_t row, int64_t group) const { return data[row * groups + group]; }
  ActivationSums From(int64_t row) const {
    return {data == nullptr ? nullptr : data + row * groups, groups};
  }
};

// Adds a group's sum to the total, scaled.
inline __m512 AddGroup(__m512 total, __m512 sum, __m512 scale, const __m512* min,
                       float activations) {
  total = _mm512_fmadd_ps(sum, scale, total);
  return min == nullptr ? total : _mm512_fnmadd_ps(*min, _mm512_set1_ps(activations), total);
}

struct Rows {
  const std::byte* data;  // of the first row: pairs of k
  int64_t step, stride;   // bytes from a pair to the next, from a row to the next
  int64_t strip_bytes;    // from 16 rows to the next

  // Some rows on; what is taken from there lies in one strip.
  Rows From(int64_t row) const {
    Rows rows = *this;
    rows.data += row / kStripRows * strip_bytes + row % kStripRows * stride;
    return rows;
  }
};

// What panels hold is asked for this far ahead of its use: the hardware's own prefetch ends at each
// page and each panel, and widening leaves the core too few loads in flight to hide the memory's
// latency.
constexpr int64_t kCodeBytesAhead = 2048, kScaleBytesAhead = 256;

// From where `panels` panels of `bytes` each begin: what a panel needs `ahead` after its byte `at`.
// It lies in the same panel or in the one that takes its place; past the last panel nothing is
// read.
int64_t AheadOf(int64_t at, int64_t ahead, int64_t bytes, int panels) {
  const int64_t to = at + ahead;
  return to < bytes ? to : to + (panels - 1) * bytes;
}

// kRows rows by kPanels panels from `panel` on.
template <int kRows, int kPanels, int kBits>
void AddGroups(const Rows& rows, const QuantizedMatrix& w, int64_t panel,
               const ActivationSums& sums, float (*out)[kMostPanels][kPanelColumns]) {
  const __m512i table = NibbleTable(w.zero);
  const int64_t panel_bytes = w.panel_bytes();
  const std::byte* codes = w.codes.raw() + panel * panel_bytes;
  __m512 total[kRows][kPanels];
  for (auto& row : total) std::fill(row, row + kPanels, _mm512_setzero_ps());
  const int64_t groups = w.groups();
  const auto scale_bytes = kPanelColumns * static_cast<int64_t>(SizeOf(w.scales.dtype()));
  const std::byte* scales = w.scales.raw() + panel * groups * scale_bytes;
  for (int64_t g = 0; g < groups; ++g) {
    __m512 acc[kRows][kPanels];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_setzero_ps();
    }
    const int64_t end = std::min((g + 1) * w.group, w.k_padded);
    for (int64_t k = g * w.group; k < end; k += 2 * kPairs<kBits>) {
      const std::byte* left = rows.data + k / 2 * rows.step;
      const std::byte* ahead =
          codes + AheadOf(k * 2 * kBits, kCodeBytesAhead, panel_bytes, kPanels);
      __m512i loaded[kPanels];
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        __builtin_prefetch(ahead + p * panel_bytes);
        loaded[p] = LoadCodes<kBits>(codes + p * panel_bytes + k * 2 * kBits);
      }
#pragma GCC unroll 4
      for (int j = 0; j < kPairs<kBits>; ++j) {
        __m512bh right[kPanels];
#pragma GCC unroll 4
        for (int p = 0; p < kPanels; ++p) right[p] = PairOf<kBits>(loaded[p], table, j);
          // A row's pair is loaded once for all panels: loads are what there are fewest of.
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m512bh pair = BroadcastPair(left + j * rows.step + r * rows.stride);
#pragma GCC unroll 4
          for (int p = 0; p < kPanels; ++p) acc[r][p] = _mm512_dpbf16_ps(acc[r][p], pair, right[p]);
        }
      }
    }
    const std::byte* ahead =
        scales + AheadOf(g * scale_bytes, kScaleBytesAhead, groups * scale_bytes, kPanels);
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const int64_t at = (panel + p) * groups + g;
      __builtin_prefetch(ahead + p * groups * scale_bytes);
      const __m512 scale = Scales(w.scales, at);
      const bool has_min = sums.data != nullptr;
      const __m512 min = has_min ? Scales(w.mins, at) : _mm512_setzero_ps();
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        total[r][p] = AddGroup(total[r][p], acc[r][p], scale, has_min ? &min : nullptr,
                               has_min ? sums.At(r, g) : 0.0f);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) _mm512_store_ps(out[r][p], total[r][p]);
  }
}

using AddFunction = void (*)(const Rows&, const QuantizedMatrix&, int64_t, const ActivationSums&,
                             float (*)[kMostPanels][kPanelColumns]);

template <int kBits>
AddFunction AddOf(int64_t rows, int64_t panels) {
  static constexpr AddFunction kFour[] = {AddGroups<1, 4, kBits>, AddGroups<2, 4, kBits>,
                                          AddGroups<3, 4, kBits>, AddGroups<4, 4, kBits>};
  static constexpr AddFunction kTwo[] = {AddGroups<1, 2, kBits>, AddGroups<2, 2, kBits>,
                                         AddGroups<3, 2, kBits>, AddGroups<4, 2, kBits>,
                                         AddGroups<5, 2, kBits>, AddGroups<6, 2, kBits>,
                                         AddGroups<7, 2, kBits>, AddGroups<8, 2, kBits>};
  static constexpr AddFunction kOne[] = {AddGroups<1, 1, kBits>, AddGroups<2, 1, kBits>,
                                         AddGroups<3, 1, kBits>, AddGroups<4, 1, kBits>,
                                         AddGroups<5, 1, kBits>, AddGroups<6, 1, kBits>,
                                         AddGroups<7, 1, kBits>, AddGroups<8, 1, kBits>};
  if (panels == 4) return kFour[rows - 1];
  return (panels == 2 ? kTwo : kOne)[rows - 1];
}

struct StripRange {
  int64_t row, rows;  // of the block
  int64_t panel, panels;
};

void StripByPanels(const QuantBlock& quant, const Rows& left, const ActivationSums& sums,
                   const StripRange& at) {
  const QuantizedMatrix& w = quant.weights;
  alignas(64) float out[kMostRows][kMostPanels][kPanelColumns];
  (w.bits == 4 ? AddOf<4>(at.rows, at.panels) : AddOf<8>(at.rows, at.panels))(left, w, at.panel,
                                                                              sums, out);
  for (int64_t p = 0; p < at.panels; p += 2) {
    const int64_t column = (at.panel + p) * kPanelColumns;
    StoreRows(quant.gemm,
              {.first = out[0][p],
               .second = out[0][std::min(p + 1, kMostPanels - 1)],
               .row_stride = kMostPanels * kPanelColumns,
               .row = quant.block.row + at.row,
               .rows = at.rows},
              quant.column + column,
              std::min((p + 1 < at.panels ? 2 : 1) * kPanelColumns, w.n - column));
  }
}

// Strip after strip meets some panels, whose codes the first-level cache keeps.
void AllStrips(const QuantBlock& quant, const Rows& rows, const ActivationSums& sums) {
  const GemmBlock& block = quant.block;
  const int64_t end = block.panel + block.panels, most = RowsTogether(quant.weights.bits);
  const int64_t together = PanelsTogether(std::min(most, block.rows));
  for (int64_t panel = block.panel; panel < end;) {
    const int64_t panels = panel + together <= end ? together : 1;
    for (int64_t strip = 0; strip < block.rows; strip += kStripRows) {
      // Passes alike: one of a single row would wait for each of its sums.
      const int64_t count = std::min(kStripRows, block.rows - strip);
      const int64_t passes = (count + most - 1) / most, each = (count + passes - 1) / passes;
      for (int64_t row = strip; row < strip + count; row += each) {
        StripByPanels(quant, rows.From(row), sums.From(row),
                      {row, std::min(each, strip + count - row), panel, panels});
      }
    }
    panel += panels;
  }
}

// Lanes first, then across them.
float SumOf(const BF16* x, int64_t count) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 32) {
    const __m512i part = _mm512_maskz_loadu_epi16(ColumnMask(count - i), x + i);
    sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(part), ones);
  }
  return _mm512_reduce_add_ps(sum);
}

ActivationSums SumActivations(const QuantBlock& quant, float* to) {
  const QuantizedMatrix& w = quant.weights;
  if (!w.mins.defined()) return {};
  const int64_t groups = w.groups();
  if (quant.block.packed) return {to, groups};
  const BF16* x = reinterpret_cast<const BF16*>(quant.gemm.a.data) + quant.block.row * w.k;
  for (int64_t r = 0; r < quant.block.rows; ++r, x += w.k) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = g * w.group, end = std::min(w.k, begin + w.group);
      to[r * groups + g] = SumOf(x + begin, std::max<int64_t>(0, end - begin));
    }
  }
  return {to, groups};
}

}  // namespace

void GemmBlockQuantAvx512(const QuantBlock& quant, std::byte* scratch) {
  const QuantizedMatrix& w = quant.weights;
  const GemmBlock& block = quant.block;
  const int64_t strips_bytes = (block.rows + 31) / 32 * 32 * w.k_padded * 2;
  const ActivationSums sums =
      SumActivations(quant, reinterpret_cast<float*>(scratch + strips_bytes));
  if (block.rows <= kMostRows && w.k == w.k_padded) {
    const int64_t row_bytes = w.k * 2;
    return AllStrips(quant,
                     {.data = quant.gemm.a.data + block.row * row_bytes,
                      .step = 4,
                      .stride = row_bytes,
                      .strip_bytes = kStripRows * row_bytes},
                     sums);
  }
  BlockStrips all;
  const std::span<Strip> strips = MakeStrips(quant.gemm, block, scratch, all);
  if (!block.packed) PackStrips(quant.gemm, block, strips, scratch);
  AllStrips(quant,
            {.data = scratch,
             .step = kStepBytes,
             .stride = 4,
             .strip_bytes = w.k_padded / 2 * kStepBytes},
            sums);
}

}  // namespace cadre::ops
