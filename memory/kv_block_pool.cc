#include "memory/kv_block_pool.h"

#include <cstring>

namespace cadre {

KvBlockPool::KvBlockPool(Allocator& allocator, std::vector<ops::KvLayout> layouts, int64_t blocks)
    : allocator_(allocator), layouts_(std::move(layouts)), references_(blocks, 0) {
  CADRE_CHECK(!layouts_.empty() && blocks > 0, "{} layers, {} blocks", layouts_.size(), blocks);
  for (const ops::KvLayout& layout : layouts_) {
    CADRE_CHECK(layout.block_size == block_size(), "block sizes {} and {}", layout.block_size,
                block_size());
  }
  AllocateBytes();
  // Low ids first, so that a lightly used pool touches few pages.
  for (int64_t i = blocks - 1; i >= 0; --i) free_.push_back(static_cast<int32_t>(i));
}

void KvBlockPool::DropBytes() {
  CADRE_CHECK(free_blocks() == blocks(), "{} blocks are in use", blocks() - free_blocks());
  data_.clear();
}

void KvBlockPool::AllocateBytes() {
  CADRE_CHECK(data_.empty(), "the bytes are there");
  for (const ops::KvLayout& layout : layouts_) {
    const auto bytes = static_cast<int64_t>(ops::KvBlockBytes(layout)) * blocks();
    data_.push_back(Tensor::Empty(allocator_, {bytes}, DType::kU8));
  }
}

size_t KvBlockPool::BytesPerBlock(std::span<const ops::KvLayout> layouts) {
  size_t bytes = 0;
  for (const ops::KvLayout& layout : layouts) bytes += ops::KvBlockBytes(layout);
  return bytes;
}

std::optional<int32_t> KvBlockPool::Allocate() {
  if (free_.empty()) return std::nullopt;
  const int32_t block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void KvBlockPool::Share(int32_t block) {
  CADRE_CHECK(references_[block] > 0, "block {} is free", block);
  ++references_[block];
}

void KvBlockPool::Release(int32_t block) {
  CADRE_CHECK(references_[block] > 0, "block {} is free", block);
  if (--references_[block] == 0) free_.push_back(block);
}

void KvBlockPool::Copy(int32_t from, int32_t to) {
  for (int layer = 0; layer < layers(); ++layer) {
    const size_t bytes = ops::KvBlockBytes(layouts_[layer]);
    std::memcpy(data(layer) + to * bytes, data(layer) + from * bytes, bytes);
  }
}

void KvBlockPool::Read(int32_t block, std::byte* bytes) const {
  for (int layer = 0; layer < layers(); ++layer) {
    const size_t size = ops::KvBlockBytes(layouts_[layer]);
    std::memcpy(bytes, data(layer) + block * size, size);
    bytes += size;
  }
}

void KvBlockPool::Write(int32_t block, const std::byte* bytes) {
  for (int layer = 0; layer < layers(); ++layer) {
    const size_t size = ops::KvBlockBytes(layouts_[layer]);
    std::memcpy(data(layer) + block * size, bytes, size);
    bytes += size;
  }
}

}  // namespace cadre
