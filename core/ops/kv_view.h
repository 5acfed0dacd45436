// Paged keys and values of one layer: how a block is laid out, the view that attention reads, and
// the op that writes new tokens.
//
// A pool is `data` plus a layout: blocks end to end, each KvBlockBytes(layout). A block holds
// block_size slots; per KV head first the keys, then the values, arranged so that attention loads
// them as matrix operands without a copy:
//   bf16      keys   [block_size / 16][dh' / 2][16 slots][2]   dh' = dh rounded up to 32
//             values [block_size / 2][dv'][2 slots]            dv' = dv rounded up to 16
//   f32, f64  keys   [block_size / 16][dh][16 slots]           dh' = dh
//             values [block_size][dv']
// f16 tensors are kept in f32 pools. Slots that were never written may hold anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/context.h"

namespace cadre::ops {

struct KvLayout {
  DType dtype = DType::kBF16;  // kBF16, kF32 or kF64
  int kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  int block_size = 64;  // slots, a multiple of 16; multiples of 64 are read without a copy

  bool pairs() const { return dtype == DType::kBF16; }
  int64_t key_pad() const { return pairs() ? (key_dim + 31) / 32 * 32 : key_dim; }
  int64_t value_pad() const { return (value_dim + 15) / 16 * 16; }
  // In elements.
  int64_t head_elements() const { return block_size * (key_pad() + value_pad()); }
  int64_t block_elements() const { return kv_heads * head_elements(); }
  // Element (slot, d) from the start of a (block, head).
  int64_t KeyOffset(int64_t slot, int64_t d) const {
    int64_t panel = slot / 16 * 16 * key_pad();
    return pairs() ? panel + d / 2 * 32 + slot % 16 * 2 + d % 2 : panel + d * 16 + slot % 16;
  }
  int64_t ValueOffset(int64_t slot, int64_t d) const {
    int64_t base = block_size * key_pad();
    return pairs() ? base + slot / 2 * 2 * value_pad() + d * 2 + slot % 2
                   : base + slot * value_pad() + d;
  }
};

size_t KvBlockBytes(const KvLayout& layout);

// The dtype of a pool for tensors of `dtype`.
DType KvPoolDType(DType dtype);

// One layer's keys and values of S sequences. Borrows everything; the caller keeps it alive and
// unchanged (but for WriteKv) while ops read it.
struct KvView {
  std::byte* data = nullptr;
  KvLayout layout;
  std::span<const int32_t> block_tables;  // [S, table_stride], block ids
  int64_t table_stride = 0;
  std::span<const int32_t> context_lengths;  // [S], slots in use, new tokens included
  // Original positions [blocks of the pool, K, block_size] after an eviction; -1 marks an empty
  // slot. Null: slot i of a sequence is position i.
  const int32_t* positions = nullptr;

  int64_t sequences() const { return static_cast<int64_t>(context_lengths.size()); }
  int64_t Block(int64_t sequence, int64_t index) const {
    return block_tables[sequence * table_stride + index];
  }
  std::byte* Head(int64_t block, int64_t head) const {
    return data +
           (block * layout.block_elements() + head * layout.head_elements()) * SizeOf(layout.dtype);
  }
};

// Writes k [T, K, dh] and v [T, K, dv] into the pool; token t goes to slot slots[t], counted over
// the whole pool (block * block_size + offset); a negative slot skips the token. No two tokens may
// share a slot. No gradient.
struct WriteKvArgs {
  Tensor k, v;
  std::span<const int64_t> slots;  // [T]
  std::byte* data = nullptr;
  KvLayout layout;
};
void WriteKv(Context& ctx, const WriteKvArgs& args);

}  // namespace cadre::ops
