#include <algorithm>

#include "core/ops/attention_kernels.h"
#include "core/ops/avx512-inl.h"

namespace cadre::ops {
namespace {

constexpr int64_t kRowsAtOnce = 8;
// So few rows wait for memory: more panels at once, and what comes next on its way meanwhile.
constexpr int kFewRows = 2;

// Brings `next` nearer, a line for each of `steps` steps or more of them.
class Prefetch {
 public:
  Prefetch(const std::byte* next, int64_t bytes, int64_t steps)
      : at_(next), end_(next + bytes), lines_(steps == 0 ? 0 : (bytes / 64 + steps - 1) / steps) {}
  void Step() {
    for (int64_t i = 0; i < lines_ && at_ < end_; ++i, at_ += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T0);
    }
  }

 private:
  const std::byte *at_, *end_;
  const int64_t lines_;
};

template <int kRows, int kPanels>
void Block(const AttentionGemm& g, int64_t row, int64_t panel, Prefetch next = {nullptr, 0, 0}) {
  const BF16* a = static_cast<const BF16*>(g.a) + row * g.lda;
  const BF16* b = static_cast<const BF16*>(g.b) + panel * g.b_panel;
  float* c = g.c + row * g.ldc + panel * 16;
  __m512 sums[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      sums[r][p] = g.accumulate ? _mm512_loadu_ps(c + r * g.ldc + p * 16) : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < g.k; k += 2, a += 2, b += g.b_row) {
    __m512bh right[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) right[p] = LoadPairs(b + p * g.b_panel);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh pair = BroadcastPair(a + r * g.lda);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] = _mm512_dpbf16_ps(sums[r][p], pair, right[p]);
    }
    if constexpr (kRows <= kFewRows) next.Step();
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) _mm512_storeu_ps(c + r * g.ldc + p * 16, sums[r][p]);
  }
}

template <int kRows>
void Rows(const AttentionGemm& g, int64_t row) {
  const int64_t panels = g.n / 16;
  int64_t panel = 0;
  if constexpr (kRows <= kFewRows) {
    const int64_t blocks = std::max<int64_t>(panels / 4, 1), share = g.next_bytes / blocks;
    for (; panel + 4 <= panels; panel += 4) {
      const bool used = row == 0 && g.next != nullptr;
      Block<kRows, 4>(g, row, panel,
                      {used ? g.next + panel / 4 * share : nullptr, used ? share : 0, g.k / 2});
    }
  }
  for (; panel + 2 <= panels; panel += 2) Block<kRows, 2>(g, row, panel);
  if (panel < panels) Block<kRows, 1>(g, row, panel);
}

}  // namespace

void AttentionAvx512Gemm(const AttentionGemm& g) {
  using RowsFunction = void (*)(const AttentionGemm&, int64_t);
  static constexpr RowsFunction kRest[] = {Rows<1>, Rows<2>, Rows<3>, Rows<4>,
                                           Rows<5>, Rows<6>, Rows<7>, Rows<8>};
  for (int64_t row = 0; row < g.m; row += kRowsAtOnce) {
    kRest[std::min(kRowsAtOnce, g.m - row) - 1](g, row);
  }
}

}  // namespace cadre::ops
