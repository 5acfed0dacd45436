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
//
// Quantized (core/ops/kv_quantize.h), a head's keys and values are codes in bf16's order, then the
// scales in bf16, each [block_size / 16][groups][16 slots], then zeros up to 64 bytes:
//   int8      a byte a code, one group a vector
//   int4      of each 128 codes, code 32 r + i is nibble r of the i-th 16-bit word, plus 8; groups
//             of 32 elements of a vector; dv' = dv rounded up to 64
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/context.h"

namespace cadre::ops {

enum class KvQuantization : uint8_t { kNone, kInt8, kInt4 };

struct KvLayout {
  DType dtype = DType::kBF16;  // kBF16, kF32 or kF64: what is kept, or what codes are made of
  int kv_heads = 0;
  int key_dim = 0;
  int value_dim = 0;
  int block_size = 64;  // slots, a multiple of 16; multiples of 64 are read without a copy

  KvQuantization quantization = KvQuantization::kNone;

  bool operator==(const KvLayout&) const = default;
  bool quantized() const { return quantization != KvQuantization::kNone; }
  bool pairs() const { return dtype == DType::kBF16 || quantized(); }
  int64_t key_pad() const { return pairs() ? (key_dim + 31) / 32 * 32 : key_dim; }
  int64_t value_pad() const {
    const int64_t to = quantization == KvQuantization::kInt4 ? 64 : 16;
    return (value_dim + to - 1) / to * to;
  }
  // Scales of one slot's keys and values; none where nothing is quantized.
  int64_t key_groups() const { return Groups(key_pad()); }
  int64_t value_groups() const { return Groups(value_pad()); }

  // Of a (block, head), and of these many elements of it.
  int64_t bytes_of(int64_t elements) const {
    if (quantized()) return quantization == KvQuantization::kInt8 ? elements : elements / 2;
    return elements * static_cast<int64_t>(SizeOf(dtype));
  }
  int64_t key_scales_at() const { return bytes_of(block_size * (key_pad() + value_pad())); }
  int64_t value_scales_at() const { return key_scales_at() + block_size * key_groups() * 2; }
  int64_t head_bytes() const {
    return (value_scales_at() + block_size * value_groups() * 2 + 63) / 64 * 64;
  }
  int64_t block_bytes() const { return kv_heads * head_bytes(); }
  // Place of a slot's scale of a group among the key scales, or among the value scales.
  static int64_t ScaleOffset(int64_t slot, int64_t group, int64_t groups) {
    return (slot / 16 * groups + group) * 16 + slot % 16;
  }
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

 private:
  int64_t Groups(int64_t padded) const {
    if (!quantized()) return 0;
    return quantization == KvQuantization::kInt8 ? 1 : padded / 32;
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
    return data + block * layout.block_bytes() + head * layout.head_bytes();
  }
};

// What a (block, head) holds at (slot, d).
double KvKey(const KvLayout& layout, const std::byte* head, int64_t slot, int64_t d);
double KvValue(const KvLayout& layout, const std::byte* head, int64_t slot, int64_t d);

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
