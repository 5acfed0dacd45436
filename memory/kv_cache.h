// KvCache: where the keys and values of sequences lie. It owns the block pool and decides which
// blocks each sequence holds; scheduler and engine name a sequence's tokens and never a free list.
//
//   KvSequence kv;                                       // one per sequence, empty
//   if (!cache.Extend(kv, 40)) ...                       // room for tokens 0..39, or unchanged
//   ... the forward writes slots cache.Slot(kv, 0..39) ...
//   cache.Commit(kv, tokens.first(40));                  // now they are stored
//   cache.Free(kv);                                      // its blocks are free again
//
// What was extended and written but not committed is overwritten by what comes next, so tokens that
// speculation guessed wrongly need no undoing.
//
// One thread at a time (the engine's). The allocator outlives the cache, the cache its sequences'
// references: Free each of them first.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "memory/kv_block_pool.h"

namespace cadre {

// One sequence's blocks. Written by KvCache alone.
class KvSequence {
 public:
  KvSequence() = default;
  KvSequence(KvSequence&&) = default;
  KvSequence& operator=(KvSequence&&) = default;

  // Tokens, from the first on, whose keys and values are in blocks.
  int64_t stored() const { return stored_; }
  // In the order of the tokens; those past stored() are room.
  std::span<const int32_t> blocks() const { return blocks_; }

 private:
  friend class KvCache;
  int64_t stored_ = 0;
  std::vector<int32_t> blocks_;
};

class KvCache {
 public:
  // layouts: one per layer, all with the same block_size.
  KvCache(Allocator& allocator, std::vector<ops::KvLayout> layouts, int64_t blocks)
      : pool_(allocator, std::move(layouts), blocks) {}

  const KvBlockPool& pool() const { return pool_; }
  int64_t block_size() const { return pool_.block_size(); }
  int64_t blocks() const { return pool_.blocks(); }
  // Blocks that Extend can still give.
  int64_t free_blocks() const { return pool_.free_blocks(); }
  // The share of the blocks that is not free, 0 to 1.
  double usage() const {
    return 1.0 - static_cast<double>(free_blocks()) / static_cast<double>(blocks());
  }
  int64_t BlocksFor(int64_t tokens) const { return (tokens + block_size() - 1) / block_size(); }
  // Blocks that Extend would take to give room for the sequence's first `tokens`.
  int64_t BlocksNeeded(const KvSequence& sequence, int64_t tokens) const;

  // Room for the sequence's first `tokens`. False, and nothing changed, where blocks lack.
  bool Extend(KvSequence& sequence, int64_t tokens);
  // `tokens` are all that are stored now: those before, and then what the forward has written.
  // They lie in room that was extended.
  void Commit(KvSequence& sequence, std::span<const int32_t> tokens);
  // Gives all blocks back.
  void Free(KvSequence& sequence);

  // Where token `index` of the sequence lies or will, counted over the whole pool.
  int64_t Slot(const KvSequence& sequence, int64_t index) const {
    return sequence.blocks_[index / block_size()] * block_size() + index % block_size();
  }

 private:
  KvBlockPool pool_;
};

}  // namespace cadre
