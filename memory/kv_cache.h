// KvCache: where the keys and values of sequences lie. It owns the block pool and the index of
// cached prefixes and decides which blocks each sequence holds; scheduler and engine name a
// sequence's tokens and never a free list.
//
//   KvSequence kv;                                       // one per sequence, empty
//   cache.Attach(kv, root, tokens, tokens.size() - 1);   // what is cached of it, 0 to all but one
//   if (!cache.Extend(kv, 40)) ...                       // room for tokens 0..39, or unchanged
//   for (KvCopy copy : cache.TakeCopies()) cache.Copy(copy);  // before anything is written
//   ... the forward writes slots cache.Slot(kv, kv.stored()..39) ...
//   cache.Commit(kv, tokens.first(40));                  // now they are stored
//   cache.Free(kv);                                      // what is cached of it stays to be found
//
// Sequences share blocks, counted by references; only the last one of a sequence may be written,
// and Extend copies it first where others hold it (copy on write). Blocks that were filled are
// found by later sequences with the same prefix until their place is needed: see
// memory/prefix_index.h.
//
// What was extended and written but not committed is overwritten by what comes next, so tokens that
// speculation guessed wrongly need no undoing.
//
// One thread at a time (the engine's). The allocator outlives the cache, the cache its sequences'
// references: Free each of them first.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memory/kv_block_pool.h"
#include "memory/kv_tiers.h"
#include "memory/prefix_index.h"

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
  std::string root_;            // empty: nothing of it is to be found by others
  int64_t weight_version_ = 0;  // of what is stored
  // links_[i]: the chain past block i, for the leading blocks that are entries of the index.
  std::vector<PrefixLink> links_;
};

// What a prefix's bits depend on besides its tokens, and who may share them.
struct PrefixRoot {
  std::string adapter;  // empty: none
  std::string salt;     // one per tenant; empty is one, too
};

struct KvCopy {
  int32_t from = 0, to = 0;
};

struct KvCacheOptions {
  bool prefix_caching = true;  // else no block is shared
  PrefixHashFunction hash = HashPrefixBlock;
  std::unique_ptr<KvTiers> tiers;  // null: what leaves the pool is forgotten
};

class KvCache {
 public:
  // layouts: one per layer, all with the same block_size.
  KvCache(Allocator& allocator, std::vector<ops::KvLayout> layouts, int64_t blocks,
          KvCacheOptions options = {});

  const KvBlockPool& pool() const { return pool_; }
  bool prefix_caching() const { return prefix_caching_; }
  int64_t block_size() const { return pool_.block_size(); }
  int64_t blocks() const { return pool_.blocks(); }
  // Blocks that Extend can still give, those of cached prefixes that no sequence holds included.
  int64_t free_blocks() const { return pool_.free_blocks() + index_.idle(); }
  // The share of the blocks that is not free, 0 to 1.
  double usage() const {
    return 1.0 - static_cast<double>(free_blocks()) / static_cast<double>(blocks());
  }
  int64_t BlocksFor(int64_t tokens) const { return (tokens + block_size() - 1) / block_size(); }
  // Free blocks that must be there for Extend to give room for the sequence's first `tokens`.
  int64_t BlocksNeeded(const KvSequence& sequence, int64_t tokens) const;

  enum class Fetched { kHere, kArriving, kOnDisk };
  // Brings what the disk tier has of a cached prefix of `tokens` nearer: kArriving while it is
  // being read; Attach finds it afterwards. `start`: the first time for this prompt, when reads are
  // begun; other calls only ask, and say kOnDisk where some is there that nobody reads. Never waits
  // itself.
  Fetched Fetch(const PrefixRoot& root, std::span<const int32_t> tokens, bool start);
  // Until one of the reads that Fetch began, or a write, is done.
  void WaitForFetch();

  // Lets the sequence, which is empty, hold the longest cached prefix of `tokens`, and returns its
  // tokens: at most `limit`, in whole blocks but for that bound. Its blocks, once filled, are
  // cached below the same root.
  int64_t Attach(KvSequence& sequence, const PrefixRoot& root, std::span<const int32_t> tokens,
                 int64_t limit);
  // Lets the sequence, which is empty, hold the first `limit` tokens of another, its last block's
  // part included, and returns their number. `limit` tokens are stored there, and are the same.
  int64_t Fork(KvSequence& sequence, const KvSequence& from, int64_t limit);
  // Room for the sequence's first `tokens`. False, and nothing changed, where blocks lack.
  bool Extend(KvSequence& sequence, int64_t tokens);
  // Copies that Extend asked for, in their order; to be made before blocks are written.
  std::vector<KvCopy> TakeCopies() { return std::exchange(copies_, {}); }
  void Copy(const KvCopy& copy) { pool_.Copy(copy.from, copy.to); }
  // `tokens` are all that are stored now: those before, and then what the forward has written.
  // They lie in room that was extended. A full block whose tokens are cached already is given back
  // for the cached one, so blocks() may change.
  void Commit(KvSequence& sequence, std::span<const int32_t> tokens);
  // Gives all blocks back.
  void Free(KvSequence& sequence);

  // What is cached of other weights is not found any more, and sequences that hold some of it add
  // nothing to it.
  void SetWeightVersion(int64_t version) { weight_version_ = version; }

  // Forgets every cached prefix and gives the memory up, no sequence holding any; and takes it
  // again. Between the two nothing is extended.
  void DropBytes();
  void AllocateBytes() { pool_.AllocateBytes(); }

  // Where token `index` of the sequence lies or will, counted over the whole pool.
  int64_t Slot(const KvSequence& sequence, int64_t index) const {
    return sequence.blocks_[index / block_size()] * block_size() + index % block_size();
  }

 private:
  int32_t Allocate();
  // The next block of a chain, from the index or, into a free block, from memory's tier, with one
  // more reference.
  std::optional<PrefixIndex::Hit> Hold(const std::string& root, const PrefixLink& link,
                                       std::span<const int32_t> tokens);
  void Share(int32_t block);
  void Release(int32_t block);
  std::string RootOf(const PrefixRoot& root) const;
  // Whether the block that the next token goes to is held by others: by sequences, or also by the
  // index.
  bool SharedWithSequences(const KvSequence& sequence) const;
  bool SharedAtAll(const KvSequence& sequence) const;
  int32_t ReferencesOfLast(const KvSequence& sequence) const;
  // Makes the sequence's next full block known; false where that cannot be.
  bool IndexNext(KvSequence& sequence, std::span<const int32_t> tokens);

  KvBlockPool pool_;
  PrefixIndex index_;  // holds one reference to each of its entries' blocks
  bool prefix_caching_;
  std::string kv_type_;
  std::unique_ptr<KvTiers> tiers_;
  int64_t weight_version_ = 0;
  std::vector<KvCopy> copies_;
};

}  // namespace cadre
