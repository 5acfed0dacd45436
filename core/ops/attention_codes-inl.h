// Tiles of quantized keys and values, under Highway's dynamic dispatch; include like simd-inl.h.
// Codes become bf16, which holds them exactly; scores are scaled by the keys' scales after the
// product, probabilities by the values' before it. Groups are summed in ascending order.

#if defined(CADRE_CORE_OPS_ATTENTION_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CADRE_CORE_OPS_ATTENTION_CODES_INL_H_
#undef CADRE_CORE_OPS_ATTENTION_CODES_INL_H_
#else
#define CADRE_CORE_OPS_ATTENTION_CODES_INL_H_
#endif

#include <algorithm>

#include "core/ops/attention_work.h"
#include "core/ops/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// A: of a kernel's left operand.
template <typename A>
class CodeTiles {
 public:
  CodeTiles(const KvView& kv, const AttentionBackend& backend)
      : kv_(kv),
        backend_(backend),
        layout_(kv.layout),
        keys_(layout_.key_pad()),
        values_(layout_.value_pad()),
        key_groups_(layout_.key_groups()),
        value_groups_(layout_.value_groups()) {}

  // Codes and scales of slots [first, first + n). What lies behind the context gets scales of zero:
  // a probability of zero times whatever was left there must be zero.
  void Load(const AttentionBlock& block, int64_t first, int64_t n, const AttentionWork& w) const {
    const int64_t size = layout_.block_size, length = kv_.context_lengths[block.sequence];
    BF16* keys = reinterpret_cast<BF16*>(w.kv);
    BF16* values = keys + kAttentionKeyTile * keys_;
    for (int64_t i = 0; i < n; i += 16, keys += 16 * keys_, values += 16 * values_) {
      const int64_t slot = first + i, left = std::min<int64_t>(length - slot, 16);
      if (left <= 0) {
        std::fill_n(keys, 16 * keys_, BF16());
        std::fill_n(values, 16 * values_, BF16());
        LoadScales(nullptr, key_groups_, 0, i, w.key_scales);
        LoadScales(nullptr, value_groups_, 0, i, w.value_scales);
        continue;
      }
      const int64_t at = slot % size;
      const std::byte* head = kv_.Head(kv_.Block(block.sequence, slot / size), block.kv_head);
      Prefetch(block, slot + kAttentionKeyTile);
      backend_.unpack(layout_.quantization, head + layout_.bytes_of(at * keys_), 16 * keys_, keys);
      backend_.unpack(layout_.quantization, head + layout_.bytes_of(size * keys_ + at * values_),
                      16 * values_, values);
      const auto* scales = reinterpret_cast<const BF16*>(head + layout_.key_scales_at());
      LoadScales(scales + at * key_groups_, key_groups_, left, i, w.key_scales);
      scales = reinterpret_cast<const BF16*>(head + layout_.value_scales_at());
      LoadScales(scales + at * value_groups_, value_groups_, left, i, w.value_scales);
    }
  }

  // w.scores of w.q.
  void Scores(int64_t rows, int64_t n, const AttentionWork& w) const {
    const int64_t group = keys_ / key_groups_;
    for (int64_t g = 0; g < key_groups_; ++g) {
      backend_.gemm({.a = reinterpret_cast<const A*>(w.q) + g * group,
                     .lda = keys_,
                     .b = reinterpret_cast<const BF16*>(w.kv) + g * group * 16,
                     .b_row = 32,
                     .b_panel = 16 * keys_,
                     .c = g == 0 ? w.scores : w.group_scores,
                     .ldc = kAttentionKeyTile,
                     .m = rows,
                     .n = n,
                     .k = group});
      AddScaled(rows, n, w.key_scales + g * kAttentionKeyTile, g, w);
    }
  }

  // w.part of w.wide_p.
  void Values(int64_t rows, int64_t n, const AttentionWork& w) const {
    const int64_t group = values_ / value_groups_;
    const BF16* values = reinterpret_cast<const BF16*>(w.kv) + kAttentionKeyTile * keys_;
    for (int64_t g = 0; g < value_groups_; ++g) {
      ScaleP(rows, n, w.value_scales + g * kAttentionKeyTile, w);
      backend_.gemm({.a = w.p,
                     .lda = kAttentionKeyTile,
                     .b = values + g * group * 2,
                     .b_row = values_ * 2,
                     .b_panel = 32,
                     .c = w.part + g * group,
                     .ldc = values_,
                     .m = rows,
                     .n = group,
                     .k = n});
    }
  }

 private:
  // Asks for the codes of the panel of 16 slots that begins with `slot`: while codes are computed
  // with, nothing else would read ahead.
  void Prefetch(const AttentionBlock& block, int64_t slot) const {
    if (slot >= block.key_end) return;
    const int64_t size = layout_.block_size, at = slot % size;
    const std::byte* head = kv_.Head(kv_.Block(block.sequence, slot / size), block.kv_head);
    const auto ask = [](const std::byte* from, int64_t bytes) {
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    };
    ask(head + layout_.bytes_of(at * keys_), layout_.bytes_of(16 * keys_));
    ask(head + layout_.bytes_of(size * keys_ + at * values_), layout_.bytes_of(16 * values_));
  }

  // Those of a panel of 16 slots, [groups][16], to columns [column, column + 16) of [groups][tile].
  static void LoadScales(const BF16* from, int64_t groups, int64_t count, int64_t column,
                         float* to) {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(DF()));
    for (int64_t g = 0; g < groups; ++g) {
      float* row = to + g * kAttentionKeyTile + column;
      for (int64_t i = 0; i < 16 && count > 0; i += lanes) {
        Store(ops::HWY_NAMESPACE::Load(from + g * 16 + i), row + i);
      }
      std::fill(row + count, row + 16, 0.0f);
    }
  }

  void AddScaled(int64_t rows, int64_t n, const float* scales, int64_t g,
                 const AttentionWork& w) const {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(DF()));
    for (int64_t r = 0; r < rows; ++r) {
      float* scores = w.scores + r * kAttentionKeyTile;
      const float* more = w.group_scores + r * kAttentionKeyTile;
      for (int64_t i = 0; i < n; i += lanes) {
        const VF by = ops::HWY_NAMESPACE::Load(scales + i);
        const VF sum = ops::HWY_NAMESPACE::Load(scores + i);
        Store(g == 0 ? hn::Mul(sum, by) : hn::MulAdd(ops::HWY_NAMESPACE::Load(more + i), by, sum),
              scores + i);
      }
    }
  }

  void ScaleP(int64_t rows, int64_t n, const float* scales, const AttentionWork& w) const {
    A* to = reinterpret_cast<A*>(w.p);
    if constexpr (std::is_same_v<A, BF16>) {
      AttentionScaleBf16({w.wide_p, scales, rows, n, to});
    } else {
      const int64_t lanes = static_cast<int64_t>(hn::Lanes(DF()));
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = r * kAttentionKeyTile;
        for (int64_t i = 0; i < n; i += lanes) {
          Store(hn::Mul(ops::HWY_NAMESPACE::Load(w.wide_p + row + i),
                        ops::HWY_NAMESPACE::Load(scales + i)),
                to + row + i);
        }
      }
    }
  }

  const KvView& kv_;
  const AttentionBackend& backend_;
  const KvLayout layout_;
  const int64_t keys_, values_, key_groups_, value_groups_;
};

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
