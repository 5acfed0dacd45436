#include "memory/kv_cache.h"

#include <algorithm>

namespace cadre {

int64_t KvCache::BlocksNeeded(const KvSequence& sequence, int64_t tokens) const {
  return std::max<int64_t>(BlocksFor(tokens) - static_cast<int64_t>(sequence.blocks_.size()), 0);
}

bool KvCache::Extend(KvSequence& sequence, int64_t tokens) {
  const int64_t missing = BlocksNeeded(sequence, tokens);
  if (missing > free_blocks()) return false;
  for (int64_t i = 0; i < missing; ++i) sequence.blocks_.push_back(*pool_.Allocate());
  return true;
}

void KvCache::Commit(KvSequence& sequence, std::span<const int32_t> tokens) {
  const auto stored = static_cast<int64_t>(tokens.size());
  const auto room = static_cast<int64_t>(sequence.blocks_.size()) * block_size();
  CADRE_CHECK(stored >= sequence.stored_ && stored <= room, "{} tokens after {} in room for {}",
              stored, sequence.stored_, room);
  sequence.stored_ = stored;
}

void KvCache::Free(KvSequence& sequence) {
  for (int32_t block : sequence.blocks_) pool_.Release(block);
  sequence.blocks_.clear();
  sequence.stored_ = 0;
}

}  // namespace cadre
