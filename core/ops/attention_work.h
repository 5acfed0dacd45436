// What one thread of attention works in: parts of one buffer. Private to core/ops/attention_*.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/ops/attention_kernels.h"

namespace cadre::ops {

// 64-byte aligned parts of one buffer.
class AttentionScratch {
 public:
  explicit AttentionScratch(std::byte* base) : at_(base) {}
  template <typename T>
  T* Take(int64_t count) {
    std::byte* here = at_;
    at_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(here);
  }
  const std::byte* end() const { return at_; }

 private:
  std::byte* at_;
};

inline constexpr int64_t kAttentionRows = 32;  // query rows of a unit
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr int32_t kNoKey = std::numeric_limits<int32_t>::max();

// Rows [row, row + rows) of one (sequence, KV head), where row r is query r / group of the sequence
// and head r % group of the KV head's group; and the tiles that any of them sees.
struct AttentionBlock {
  int64_t sequence = 0, kv_head = 0, row = 0, rows = 0;
  int64_t tile_begin = 0, tile_end = 0, key_end = 0;
};

// What one thread works in.
struct AttentionWork {
  std::byte *q, *p;            // [rows, key_pad], [rows, key tile]: A operands
  std::byte* kv;               // a gathered or unpacked tile: keys, values
  float *scores, *part, *sum;  // [rows, key tile], [rows, value_pad] twice
  float *part_max, *part_sum, *max, *total, *old_scale, *new_scale;  // [rows]
  bool* seen;                                                        // [rows]
  int32_t *query_positions, *key_positions;                          // [rows], [key tile]
  // Where keys and values are quantized: products of one group, probabilities before they are
  // scaled [rows, key tile], and scales [groups, key tile].
  float *group_scores = nullptr, *wide_p = nullptr;
  float *key_scales = nullptr, *value_scales = nullptr;

  static AttentionWork At(std::byte* base, const KvLayout& layout, size_t* bytes) {
    constexpr int64_t kR = kAttentionRows, kT = kAttentionKeyTile;
    const int64_t keys = layout.key_pad(), values = layout.value_pad();
    AttentionScratch s(base);
    AttentionWork w;
    w.q = s.Take<std::byte>(kR * keys * 4);
    w.p = s.Take<std::byte>(kR * kT * 4);
    w.kv = s.Take<std::byte>(kT * (keys + values) * 4);
    w.scores = s.Take<float>(kR * kT);
    w.part = s.Take<float>(kR * values);
    w.sum = s.Take<float>(kR * values);
    for (float** x : {&w.part_max, &w.part_sum, &w.max, &w.total, &w.old_scale, &w.new_scale}) {
      *x = s.Take<float>(kR);
    }
    w.seen = s.Take<bool>(kR);
    w.query_positions = s.Take<int32_t>(kR);
    w.key_positions = s.Take<int32_t>(kT);
    if (layout.quantized()) {
      w.group_scores = s.Take<float>(kR * kT);
      w.wide_p = s.Take<float>(kR * kT);
      w.key_scales = s.Take<float>(layout.key_groups() * kT);
      w.value_scales = s.Take<float>(layout.value_groups() * kT);
    }
    if (bytes != nullptr) *bytes = static_cast<size_t>(s.end() - base);
    return w;
  }
};

// What is kept of some rows: a tile's partials, or the running sums over the tiles so far.
struct AttentionPartial {
  float *max, *sum, *out;
  bool* seen;  // of a tile: which rows see any of its keys

  static AttentionPartial At(std::byte* base, int64_t rows, int64_t values, size_t* bytes) {
    AttentionScratch s(base);
    AttentionPartial p;
    p.max = s.Take<float>(rows);
    p.sum = s.Take<float>(rows);
    p.out = s.Take<float>(rows * values);
    p.seen = s.Take<bool>(rows);
    if (bytes != nullptr) *bytes = static_cast<size_t>(s.end() - base);
    return p;
  }

  void CopyTo(const AttentionPartial& to, int64_t rows, int64_t values) const {
    std::copy_n(max, rows, to.max);
    std::copy_n(sum, rows, to.sum);
    std::copy_n(out, rows * values, to.out);
    std::copy_n(seen, rows, to.seen);
  }
};

// Rows of a block of queries and keys of a tile.
inline constexpr int64_t kGradTile = kAttentionGradTile;

// What one thread works in. d is dh and e is dv, both rounded up to 32; N the sequence's tokens
// rounded up to a tile. A operands are row-major, B operands as AttentionGemm says.
struct AttentionGradWork {
  std::byte *k, *v, *kt;               // A: [N, d], [N, e]; per tile [d, tile]
  float *dk, *dv;                      // [N, d], [N, e]
  std::byte *q_panels, *do_panels;     // B: [d, tile], [e, tile]
  std::byte *q_rows, *do_rows;         // B: [tile, d], [tile, e]
  float *scores, *dp;                  // [keys, rows]
  std::byte *p, *ds;                   // A: [keys, rows]
  std::byte* ds_rows;                  // B: [keys, rows]
  float* dqt;                          // [d, rows]
  float *lse, *delta;                  // [rows]
  int32_t *positions, *key_positions;  // [rows], [tile]

  static AttentionGradWork At(std::byte* base, int64_t n, int64_t d, int64_t e, size_t* bytes) {
    constexpr int64_t kR = kGradTile;
    AttentionScratch s(base);
    AttentionGradWork w;
    w.k = s.Take<std::byte>(n * d * 4);
    w.v = s.Take<std::byte>(n * e * 4);
    w.kt = s.Take<std::byte>(n * d * 4);
    w.dk = s.Take<float>(n * d);
    w.dv = s.Take<float>(n * e);
    w.q_panels = s.Take<std::byte>(kR * d * 4);
    w.q_rows = s.Take<std::byte>(kR * d * 4);
    w.do_panels = s.Take<std::byte>(kR * e * 4);
    w.do_rows = s.Take<std::byte>(kR * e * 4);
    w.scores = s.Take<float>(kR * kR);
    w.dp = s.Take<float>(kR * kR);
    w.p = s.Take<std::byte>(kR * kR * 4);
    w.ds = s.Take<std::byte>(kR * kR * 4);
    w.ds_rows = s.Take<std::byte>(kR * kR * 4);
    w.dqt = s.Take<float>(kR * d);
    w.lse = s.Take<float>(kR);
    w.delta = s.Take<float>(kR);
    w.positions = s.Take<int32_t>(kR);
    w.key_positions = s.Take<int32_t>(kR);
    if (bytes != nullptr) *bytes = static_cast<size_t>(s.end() - base);
    return w;
  }
};

}  // namespace cadre::ops
