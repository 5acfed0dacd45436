#include "memory/kv_block_pool.h"

#include <algorithm>
#include <cstring>

namespace cadre {

KvBlockPool::KvBlockPool(Allocator& allocator, std::vector<ops::KvLayout> layouts, int64_t blocks)
    : allocator_(allocator), layouts_(std::move(layouts)), references_(blocks, 0) {
  CADRE_CHECK(!layouts_.empty() && blocks > 0, "{} layers, {} blocks", layouts_.size(), blocks);
  for (const ops::KvLayout& layout : layouts_) {
    CADRE_CHECK(layout.block_size == block_size(), "block sizes {} and {}", layout.block_size,
                block_size());
  }
  int64_t bytes = 0;
  for (const ops::KvLayout& layout : layouts_) {
    begin_.push_back(bytes);
    bytes += layout.block_bytes() * blocks;
  }
  AllocateBytes();
  // Low ids first, so that a lightly used pool touches few pages.
  for (int64_t i = blocks - 1; i >= 0; --i) free_.push_back(static_cast<int32_t>(i));
}

void KvBlockPool::DropBytes() {
  CADRE_CHECK(free_blocks() == blocks(), "{} blocks are in use", blocks() - free_blocks());
  data_ = {};
}

void KvBlockPool::AllocateBytes() {
  CADRE_CHECK(!data_.defined(), "the bytes are there");
  data_ = Tensor::Empty(allocator_, {static_cast<int64_t>(bytes())}, DType::kU8);
}

bool KvBlockPool::uniform() const {
  return std::ranges::all_of(
      layouts_, [this](const ops::KvLayout& layout) { return layout == layouts_.front(); });
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
