// PrefixIndex: which blocks hold the keys and values of which prefixes. A full block is known by
// all the tokens up to its end: entries form chains from a root (what else the bits depend on, and
// whose they are), found by a 128-bit hash of (hash of the chain before, the block's token ids).
// Every hit is checked against the ids themselves and the entry before, up to the root, so that a
// hash collision costs a recomputation and never serves another's keys.
//
// It knows ids only; who holds a block is KvCache's to say. Entries nobody holds are idle and leave
// in the order in which they became so. A sequence lets go of its blocks from the last to the first
// and holds an entry's whole chain with it, so leaves leave before what they hang from.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace cadre {

struct PrefixHash {
  uint64_t low = 0, high = 0;
  bool operator==(const PrefixHash&) const = default;
};

// The end of a chain.
struct PrefixLink {
  PrefixHash hash;
  uint64_t serial = 0;  // of its last entry, never used again; 0: the root
};

// One block of a prefix.
struct PrefixEntry {
  uint64_t serial = 0;  // 0: no entry
  uint64_t before = 0;  // serial of the entry before; 0: the root
  PrefixHash hash;
  std::string root;  // of first entries; the others have it by their chain
  std::vector<int32_t> tokens;

  // Whether it is that of `ids` after `link` below `below`.
  bool Is(const std::string& below, const PrefixLink& link, std::span<const int32_t> ids) const;
};

using PrefixHashFunction = std::function<PrefixHash(const PrefixHash&, std::span<const int32_t>)>;

// XXH3 of both.
PrefixHash HashPrefixBlock(const PrefixHash& before, std::span<const int32_t> tokens);

class PrefixIndex {
 public:
  // blocks: ids are below it. Another hash function: for tests.
  explicit PrefixIndex(int64_t blocks, PrefixHashFunction hash = HashPrefixBlock)
      : hash_(std::move(hash)), entries_(static_cast<size_t>(blocks)) {}

  static PrefixLink RootLink(const std::string& root);

  struct Hit {
    int32_t block = -1;
    PrefixLink link;  // past the block
  };
  // The entry of `tokens` after `link` below `root`.
  std::optional<Hit> Find(const std::string& root, const PrefixLink& link,
                          std::span<const int32_t> tokens) const;
  // Makes known that `block`, which is no entry and not idle, holds `tokens` after `link`. Nothing
  // where an entry of equal hash but another prefix is in use; an idle one is dropped for it and
  // its block handed to `dropped`.
  struct Insertion {
    std::optional<PrefixLink> link;  // past the block
    std::optional<int32_t> dropped;
  };
  Insertion Insert(const std::string& root, const PrefixLink& link, std::span<const int32_t> tokens,
                   int32_t block);

  // An entry that has left the index comes back as what it was, in this block.
  void Restore(PrefixEntry entry, int32_t block);
  PrefixHash HashOf(const PrefixLink& link, std::span<const int32_t> tokens) const {
    return hash_(link.hash, tokens);
  }

  bool ContainsHash(const PrefixHash& hash) const { return blocks_.contains(hash); }
  bool Contains(int32_t block) const { return entries_[block].entry.serial != 0; }
  void Erase(int32_t block);

  // Nobody holds the entry any more, or somebody does again.
  void SetIdle(int32_t block);
  void SetBusy(int32_t block);
  int64_t idle() const { return static_cast<int64_t>(idle_.size()); }
  // Drops the entry that has been idle longest; there is one.
  struct Evicted {
    int32_t block = -1;
    PrefixEntry entry;
  };
  Evicted EvictOldest();

 private:
  struct Place {
    PrefixEntry entry;
    std::optional<std::list<int32_t>::iterator> idle;
  };
  struct Low {
    size_t operator()(const PrefixHash& hash) const { return hash.low; }
  };

  PrefixHashFunction hash_;
  std::vector<Place> entries_;  // by block
  std::unordered_map<PrefixHash, int32_t, Low> blocks_;
  std::list<int32_t> idle_;  // oldest first
  uint64_t last_serial_ = 0;
};

}  // namespace cadre
