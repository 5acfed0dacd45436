#include "core/ops/kv_copy.h"

#include <cstring>

#include "core/parallel_for.h"

namespace cadre::ops {
namespace {

// The bytes of one slot: `count` runs of `unit`, the first one `at` a place in the head, the others
// `stride` apart.
struct Runs {
  int64_t at = 0, unit = 0, stride = 0, count = 0;
};

Runs KeyRuns(const KvLayout& layout, int64_t slot) {
  const int64_t pad = layout.key_pad(), size = layout.bytes_of(2);
  const int64_t panel = layout.bytes_of(slot / 16 * 16 * pad), lane = slot % 16;
  if (layout.quantization == KvQuantization::kInt4) return {panel + lane * 4, 4, 64, pad / 8};
  if (layout.pairs()) return {panel + lane * size, size, 16 * size, pad / 2};
  return {panel + lane * size / 2, size / 2, 8 * size, pad};
}

Runs ValueRuns(const KvLayout& layout, int64_t slot) {
  const int64_t pad = layout.value_pad(), size = layout.bytes_of(2), odd = slot % 2;
  const int64_t pair = layout.bytes_of(layout.block_size * layout.key_pad() + (slot - odd) * pad);
  if (layout.quantization == KvQuantization::kInt4) return {pair + odd * 2, 2, 4, pad / 4};
  if (layout.pairs()) return {pair + odd * size / 2, size / 2, size, pad};
  return {pair + odd * pad * size / 2, pad * size / 2, 0, 1};
}

Runs ScaleRuns(int64_t at, int64_t slot, int64_t groups) {
  return {at + KvLayout::ScaleOffset(slot, 0, groups) * 2, 2, 32, groups};
}

void Copy(const std::byte* from_head, const Runs& from, std::byte* to_head, const Runs& to) {
  for (int64_t i = 0; i < to.count; ++i) {
    std::memcpy(to_head + to.at + i * to.stride, from_head + from.at + i * from.stride,
                static_cast<size_t>(to.unit));
  }
}

}  // namespace

void CopyKvSlot(const KvLayout& layout, const std::byte* from_head, int64_t from,
                std::byte* to_head, int64_t to) {
  if (from_head == to_head && from == to) return;
  Copy(from_head, KeyRuns(layout, from), to_head, KeyRuns(layout, to));
  Copy(from_head, ValueRuns(layout, from), to_head, ValueRuns(layout, to));
  const int64_t keys = layout.key_groups(), values = layout.value_groups();
  Copy(from_head, ScaleRuns(layout.key_scales_at(), from, keys), to_head,
       ScaleRuns(layout.key_scales_at(), to, keys));
  Copy(from_head, ScaleRuns(layout.value_scales_at(), from, values), to_head,
       ScaleRuns(layout.value_scales_at(), to, values));
}

KeptTokens ReadKv(Context& ctx, const ReadKvArgs& args) {
  const KvLayout& layout = args.layout;
  CADRE_CHECK(!layout.quantized(), "read_kv of codes");
  const auto count = static_cast<int64_t>(args.slots.size()), heads = int64_t{layout.kv_heads};
  const KeptTokens kept{ctx.Empty({count, heads, layout.key_dim}, layout.dtype),
                        ctx.Empty({count, heads, layout.value_dim}, layout.dtype)};
  VisitFloat(layout.dtype, [&](auto type) {
    using T = decltype(type);
    ParallelFor(ctx, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * heads; i < end * heads; ++i) {
        const int64_t slot = args.slots[i / heads], in = slot % layout.block_size;
        const T* from =
            reinterpret_cast<const T*>(args.data + slot / layout.block_size * layout.block_bytes() +
                                       i % heads * layout.head_bytes());
        T* k = kept.k.template data<T>() + i * layout.key_dim;
        T* v = kept.v.template data<T>() + i * layout.value_dim;
        for (int64_t d = 0; d < layout.key_dim; ++d) k[d] = from[layout.KeyOffset(in, d)];
        for (int64_t d = 0; d < layout.value_dim; ++d) v[d] = from[layout.ValueOffset(in, d)];
      }
    });
  });
  return kept;
}

}  // namespace cadre::ops
