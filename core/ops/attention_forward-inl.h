// One block of attention's rows, start to end: the canonical order of attention.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/ops/attention_codes-inl.h"
#include "core/ops/attention_work.h"
#include "core/ops/exp2-inl.h"
#include "core/ops/simd-inl.h"

#if defined(CADRE_CORE_OPS_ATTENTION_FORWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef CADRE_CORE_OPS_ATTENTION_FORWARD_INL_H_
#undef CADRE_CORE_OPS_ATTENTION_FORWARD_INL_H_
#else
#define CADRE_CORE_OPS_ATTENTION_FORWARD_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace cadre::ops::HWY_NAMESPACE {

// T: of q and out; A: of a kernel's left operand; Pool: of its right one, the KV pool's elements or
// what its codes become.
template <typename T, typename A, typename Pool>
class Forward {
 public:
  Forward(const AttentionForwardArgs& args, const AttentionBackend& backend)
      : args_(args),
        backend_(backend),
        layout_(args.kv.layout),
        codes_(args.kv, backend),
        heads_(args.q.dim(1)),
        group_(heads_ / layout_.kv_heads),
        keys_(layout_.key_pad()),
        values_(layout_.value_pad()),
        scale_(static_cast<float>(args.scale) * kLog2E) {}

  // The block's queries and positions.
  void Queries(const AttentionBlock& block, const AttentionWork& w) const {
    const int64_t dim = layout_.key_dim;
    A* to = reinterpret_cast<A*>(w.q);
    for (int64_t r = 0; r < (block.rows + 15) / 16 * 16; ++r, to += keys_) {
      if (r >= block.rows) {
        std::fill(to, to + keys_, A());
        continue;
      }
      const T* from = args_.q.data<T>() + Row(block, r) * dim;
      if constexpr (std::is_same_v<T, A>) {
        std::memcpy(to, from, dim * sizeof(T));
      } else {
        for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<A>(static_cast<float>(from[d]));
      }
      std::fill(to + dim, to + keys_, A());
      w.query_positions[r] = Position(block, r);
    }
  }

  void EmptySums(const AttentionBlock& block, const AttentionWork& w) const {
    std::fill_n(w.sum, block.rows * values_, 0.0f);
    std::fill_n(w.max, block.rows, -std::numeric_limits<float>::infinity());
    std::fill_n(w.total, block.rows, 0.0f);
  }

  // w.scores of one tile, not yet scaled and minus infinity where hidden, and seen. Returns the
  // tile's values, or null where they are codes, which lie unpacked in w. values_next: they will be
  // read.
  const Pool* Scores(const AttentionBlock& block, int64_t tile, const AttentionWork& w,
                     bool values_next) const {
    const int64_t first = tile * kAttentionKeyTile, n = Columns(block, first);
    const Pool *k = nullptr, *v = nullptr;
    if (layout_.quantized()) {
      codes_.Load(block, first, n, w);
      codes_.Scores(block.rows, n, w);
    } else {
      Locate(block, first, n, w, &k, &v);
      backend_.gemm({.a = w.q,
                     .lda = keys_,
                     .b = k,
                     .b_row = 16 * kPack,
                     .b_panel = 16 * keys_,
                     .c = w.scores,
                     .ldc = kAttentionKeyTile,
                     .m = block.rows,
                     .n = n,
                     .k = keys_,
                     .next = values_next ? reinterpret_cast<const std::byte*>(v) : nullptr,
                     .next_bytes = Bytes(n * values_)});
    }
    Mask(block, first, n, w);
    return v;
  }

  // part, part_max, part_sum and seen of one tile.
  void Tile(const AttentionBlock& block, int64_t tile, const AttentionWork& w) const {
    const int64_t n = Columns(block, tile * kAttentionKeyTile);
    const Pool* v = Scores(block, tile, w, true);
    if (!args_.score_rows.empty()) TellScores(block, tile, n, w);
    Softmax(block.rows, n, w);
    if (layout_.quantized()) return codes_.Values(block.rows, n, w);
    backend_.gemm({.a = w.p,
                   .lda = kAttentionKeyTile,
                   .b = v,
                   .b_row = values_ * kPack,
                   .b_panel = 16 * kPack,
                   .c = w.part,
                   .ldc = values_,
                   .m = block.rows,
                   .n = values_,
                   .k = n,
                   .next = NextKeys(block, tile),
                   .next_bytes = Bytes(kAttentionKeyTile * keys_)});
  }

  // Folds the next tile's partials into the running sums.
  void Fold(int64_t rows, const AttentionPartial& part, const AttentionWork& w) const {
    const DF df;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
    for (int64_t r = 0; r < rows; r += lanes) {
      const VF before = Load(w.max + r), tile = Load(part.max + r);
      const VF after = hn::Max(before, tile);
      const VF a = Exp2(df, hn::Sub(before, after)), b = Exp2(df, hn::Sub(tile, after));
      Store(a, w.old_scale + r);
      Store(b, w.new_scale + r);
    }
    for (int64_t r = 0; r < rows; ++r) {
      if (!part.seen[r]) continue;
      w.max[r] = std::max(w.max[r], part.max[r]);
      w.total[r] = w.total[r] * w.old_scale[r] + part.sum[r] * w.new_scale[r];
      const VF a = hn::Set(df, w.old_scale[r]), b = hn::Set(df, w.new_scale[r]);
      float* sum = w.sum + r * values_;
      const float* out = part.out + r * values_;
      for (int64_t d = 0; d < values_; d += lanes) {
        Store(hn::MulAdd(Load(sum + d), a, hn::Mul(Load(out + d), b)), sum + d);
      }
    }
  }

  // Adds the sink, divides, and writes the rows.
  void Finish(const AttentionBlock& block, const AttentionWork& w) const {
    const DF df;
    const int64_t dim = layout_.value_dim, lanes = static_cast<int64_t>(hn::Lanes(df));
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t row = Row(block, r);
      float total = w.total[r], max = w.max[r], scale = 1.0f;
      if (args_.sinks.defined()) {
        const float sink = static_cast<float>(args_.sinks.data<T>()[row % heads_]) * kLog2E;
        const float after = std::max(max, sink);
        scale = hn::GetLane(Exp2(df, hn::Set(df, max - after)));
        total = total * scale + hn::GetLane(Exp2(df, hn::Set(df, sink - after)));
        max = after;
      }
      const bool none = total == 0.0f;
      if (args_.lse.defined()) {
        args_.lse.data<float>()[row] =
            none ? std::numeric_limits<float>::infinity() : max + std::log2(total);
      }
      const VF by = hn::Set(df, none ? 0.0f : scale / total);
      const float* sum = w.sum + r * values_;
      T* out = args_.out.data<T>() + row * dim;
      for (int64_t d = 0; d < dim; d += lanes) {
        const VF value = hn::Mul(Load(sum + d), by);
        if (d + lanes <= dim) {
          Store(value, out + d);
        } else {
          StoreN(value, out + d, dim - d);
        }
      }
    }
  }

  AttentionPartial Current(const AttentionWork& w) const {
    return {w.part_max, w.part_sum, w.part, w.seen};
  }
  AttentionPartial Sums(const AttentionWork& w) const { return {w.max, w.total, w.sum, w.seen}; }
  float scale() const { return scale_; }  // of scores, for powers of two

 private:
  static constexpr int64_t kPack = sizeof(Pool) == 2 ? 2 : 1;

  // Of the tile's keys, how many columns are computed.
  static int64_t Columns(const AttentionBlock& block, int64_t first) {
    return (std::min(kAttentionKeyTile, block.key_end - first) + 31) / 32 * 32;
  }

  // The row of q [T * H].
  int64_t Row(const AttentionBlock& block, int64_t r) const {
    const int64_t row = block.row + r;
    return (args_.offsets[block.sequence] + row / group_) * heads_ + block.kv_head * group_ +
           row % group_;
  }

  int32_t Position(const AttentionBlock& block, int64_t r) const {
    const int64_t t = args_.offsets[block.sequence] + (block.row + r) / group_;
    if (!args_.query_positions.empty()) return args_.query_positions[t];
    return static_cast<int32_t>(args_.kv.context_lengths[block.sequence] -
                                args_.offsets[block.sequence + 1] + t);
  }

  // Keys and values of slots [first, first + n): in place where one block holds them all, else
  // copied, with zero for what lies behind the context (a probability of zero times whatever was
  // left there must be zero).
  void Locate(const AttentionBlock& block, int64_t first, int64_t n, const AttentionWork& w,
              const Pool** k, const Pool** v) const {
    const int64_t size = layout_.block_size, length = args_.kv.context_lengths[block.sequence];
    auto head = [&](int64_t slot) {
      return reinterpret_cast<const Pool*>(
          args_.kv.Head(args_.kv.Block(block.sequence, slot / size), block.kv_head));
    };
    if (size % kAttentionKeyTile == 0 && first + n <= length) {
      *k = head(first) + first % size * keys_;
      *v = head(first) + size * keys_ + first % size * values_;
      return;
    }
    Pool* keys = reinterpret_cast<Pool*>(w.kv);
    Pool* values = keys + kAttentionKeyTile * keys_;
    *k = keys;
    *v = values;
    for (int64_t i = 0; i < n; i += 16, keys += 16 * keys_, values += 16 * values_) {
      const int64_t slot = first + i, left = length - slot;
      if (left <= 0) {
        std::fill_n(keys, 16 * keys_, Pool());
        std::fill_n(values, 16 * values_, Pool());
        continue;
      }
      const Pool* from = head(slot);
      std::memcpy(keys, from + slot % size * keys_, 16 * keys_ * sizeof(Pool));
      std::memcpy(values, from + size * keys_ + slot % size * values_, 16 * values_ * sizeof(Pool));
      for (int64_t s = left; s < 16; ++s) ClearValue(values, s);
    }
  }

  static int64_t Bytes(int64_t elements) { return elements * static_cast<int64_t>(sizeof(Pool)); }

  // The keys of the tile behind this one, where there is one that is read in place.
  const std::byte* NextKeys(const AttentionBlock& block, int64_t tile) const {
    const int64_t size = layout_.block_size, first = (tile + 1) * kAttentionKeyTile;
    if (tile + 1 >= block.tile_end || size % kAttentionKeyTile != 0) return nullptr;
    return args_.kv.Head(args_.kv.Block(block.sequence, first / size), block.kv_head) +
           Bytes(first % size * keys_);
  }

  void ClearValue(Pool* values, int64_t slot) const {
    Pool* to = values + slot / kPack * kPack * values_ + slot % kPack;
    for (int64_t d = 0; d < values_; ++d) to[d * kPack] = Pool();
  }

  void LoadKeyPositions(const AttentionBlock& block, int64_t first, int64_t n,
                        const AttentionWork& w) const {
    const KvView& kv = args_.kv;
    const int64_t size = layout_.block_size, length = kv.context_lengths[block.sequence];
    for (int64_t i = 0; i < n; ++i) {
      const int64_t slot = first + i;
      int32_t position = slot < length ? static_cast<int32_t>(slot) : kNoKey;
      if (kv.positions != nullptr && slot < length) {
        const int64_t id = kv.Block(block.sequence, slot / size);
        position = kv.positions[(id * layout_.kv_heads + block.kv_head) * size + slot % size];
        if (position < 0) position = kNoKey;
      }
      w.key_positions[i] = position;
    }
  }

  void Mask(const AttentionBlock& block, int64_t first, int64_t n, const AttentionWork& w) const {
    const bool implied = args_.kv.positions == nullptr;
    // Whether every row sees every key of the tile.
    const bool all =
        implied && first + n - 1 <= w.query_positions[0] &&
        (args_.window == 0 || first > w.query_positions[block.rows - 1] - args_.window);
    if (all) {
      std::fill_n(w.seen, block.rows, true);
      return;
    }
    LoadKeyPositions(block, first, n, w);
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t position = w.query_positions[r];
      const int64_t low = args_.window == 0 ? -1 : position - args_.window;  // the last hidden key
      float* scores = w.scores + r * kAttentionKeyTile;
      const bool whole = implied && first + n - 1 <= position && first > low;
      w.seen[r] = whole || MaskRow(scores, n, low, position, w.key_positions);
    }
  }

  // Of the block's only query: its rows are heads.
  void TellScores(const AttentionBlock& block, int64_t tile, int64_t n,
                  const AttentionWork& w) const {
    const int64_t to = args_.score_rows[block.sequence], columns = args_.scores.dim(2);
    if (to < 0) return;
    const int64_t head = to * heads_ + block.kv_head * group_ + block.row;
    float* row = args_.scores.template data<float>() + head * columns + tile * kAttentionKeyTile;
    for (int64_t r = 0; r < block.rows; ++r, row += columns) {
      std::copy_n(w.scores + r * kAttentionKeyTile, n, row);
      std::fill(row + n, row + kAttentionKeyTile, -std::numeric_limits<float>::infinity());
    }
  }

  // Probabilities to w.p, or, where values are codes, unrounded to w.wide_p.
  void Softmax(int64_t rows, int64_t n, const AttentionWork& w) const {
    const bool wide = layout_.quantized();
    A* p = reinterpret_cast<A*>(w.p);
    if constexpr (std::is_same_v<A, BF16>) {
      AttentionSoftmaxBf16({w.scores, rows, n, scale_, w.seen, w.part_max, w.part_sum, p,
                            wide ? w.wide_p : nullptr});
    } else {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t row = r * kAttentionKeyTile;
        SoftmaxRow(w.scores + row, n, w.part_max + r, w.part_sum + r, (wide ? w.wide_p : p) + row,
                   w.seen[r]);
      }
    }
  }

  // Sets hidden scores to minus infinity; whether any key is seen.
  static bool MaskRow(float* scores, int64_t n, int64_t low, int64_t high, const int32_t* keys) {
    const DF df;
    const hn::RebindToSigned<DF> di;
    const auto lowest = hn::Set(di, static_cast<int32_t>(std::max<int64_t>(low, -1)));
    const auto highest = hn::Set(di, static_cast<int32_t>(high));
    const VF hidden = hn::Set(df, -std::numeric_limits<float>::infinity());
    bool any = false;
    for (int64_t i = 0; i < n; i += hn::Lanes(df)) {
      const auto key = hn::LoadU(di, keys + i);
      const auto seen = hn::AndNot(hn::Gt(key, highest), hn::Gt(key, lowest));
      any |= !hn::AllFalse(di, seen);
      Store(hn::IfThenElse(hn::RebindMask(df, seen), Load(scores + i), hidden), scores + i);
    }
    return any;
  }

  void SoftmaxRow(const float* scores, int64_t n, float* max, float* sum, A* p, bool seen) const {
    const DF df;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(df));
    if (!seen) {
      *max = -std::numeric_limits<float>::infinity();
      *sum = 0;
      std::fill_n(p, n, A());
      return;
    }
    const VF scale = hn::Set(df, scale_);
    VF most = Load(scores);
    for (int64_t i = lanes; i < n; i += lanes) most = hn::Max(most, Load(scores + i));
    *max = hn::GetLane(hn::MaxOfLanes(df, most)) * scale_;
    const VF shift = hn::Set(df, *max);
    VF total = hn::Zero(df);
    for (int64_t i = 0; i < n; i += lanes) {
      const VF e = Exp2(df, hn::MulSub(Load(scores + i), scale, shift));
      total = hn::Add(total, e);
      Store(e, p + i);
    }
    *sum = hn::GetLane(hn::SumOfLanes(df, total));
  }

  const AttentionForwardArgs& args_;
  const AttentionBackend& backend_;
  const KvLayout layout_;
  const CodeTiles<A> codes_;
  const int64_t heads_, group_, keys_, values_;
  const float scale_;
};

}  // namespace cadre::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
