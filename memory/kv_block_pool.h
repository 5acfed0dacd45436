// KvBlockPool: the paged cache of keys and values. It hands out block ids with reference counts and
// owns the bytes: for every layer one array of blocks in the layout that attention reads
// (core/ops/kv_view.h). A block id means the same block in every layer.
//
// One thread at a time (the engine's). The allocator must outlive it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "core/context.h"
#include "core/ops/kv_view.h"

namespace cadre {

class KvBlockPool {
 public:
  // layouts: one per layer, all with the same block_size.
  KvBlockPool(Allocator& allocator, std::vector<ops::KvLayout> layouts, int64_t blocks);

  // Gives the bytes up, all blocks being free, and takes memory for them again. Between the two
  // nothing is allocated.
  void DropBytes();
  void AllocateBytes();
  size_t bytes() const { return BytesPerBlock(layouts_) * references_.size(); }

  // Bytes of one block over all layers.
  static size_t BytesPerBlock(std::span<const ops::KvLayout> layouts);

  int64_t block_size() const { return layouts_.front().block_size; }
  int64_t blocks() const { return static_cast<int64_t>(references_.size()); }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }

  // A block with one reference, or nothing where none is free.
  std::optional<int32_t> Allocate();
  void Share(int32_t block);    // one more reference
  void Release(int32_t block);  // one less; free at none
  int32_t references(int32_t block) const { return references_[block]; }

  int layers() const { return static_cast<int>(layouts_.size()); }
  const ops::KvLayout& layout(int layer) const { return layouts_[layer]; }
  std::byte* data(int layer) const { return data_.raw() + begin_[layer]; }

  // Where all layers have one layout, a block of one layer is a unit that can as well hold keys and
  // values of another: unit u's bytes are block u counted from data(0).
  bool uniform() const;
  int32_t Unit(int layer, int32_t block) const {
    return static_cast<int32_t>(layer * blocks() + block);
  }
  void Copy(int32_t from, int32_t to);  // the bytes, in every layer
  // The bytes of a block, the layers end to end, out of the pool or into it.
  void Read(int32_t block, std::byte* bytes) const;
  void Write(int32_t block, const std::byte* bytes);

 private:
  Allocator& allocator_;
  std::vector<ops::KvLayout> layouts_;
  std::vector<int64_t> begin_;  // of each layer's bytes
  Tensor data_;
  std::vector<int32_t> references_;
  std::vector<int32_t> free_;
};

}  // namespace cadre
