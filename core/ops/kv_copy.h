// Single slots of a KV pool, moved as compaction after an eviction does (codes and scales as they
// are, so nothing is quantized twice and no bit changes), or read back.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/ops/kv_view.h"

namespace cadre::ops {

// What slot `from` of a (block, head) holds goes to slot `to` of another, or of the same one, of
// the same layout; no other slot changes. Positions are the caller's. Any thread; two threads may
// write different slots of one block.
void CopyKvSlot(const KvLayout& layout, const std::byte* from_head, int64_t from,
                std::byte* to_head, int64_t to);

// What slots hold, counted over the whole pool as in WriteKv.
struct ReadKvArgs {
  std::span<const int64_t> slots;  // [n]
  const std::byte* data = nullptr;
  KvLayout layout;  // not quantized
};
struct KeptTokens {
  Tensor k, v;  // [n, K, dh] and [n, K, dv], of the layout's dtype
};
KeptTokens ReadKv(Context& ctx, const ReadKvArgs& args);

}  // namespace cadre::ops
