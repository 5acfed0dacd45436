// KvCache against a plain model, over random lives of random sequences: what is found, what is
// evicted, who may write where. Slots hold what their token's keys depend on, so that any block
// that is handed to the wrong sequence, written by two or copied too late shows.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>

#include "core/host_allocator.h"
#include "memory/kv_cache.h"

namespace cadre {
namespace {

constexpr int64_t kBlockSize = 2;
constexpr int64_t kBlocks = 12;
constexpr int kMostSequences = 5;

using Prefix = std::pair<std::string, std::vector<int32_t>>;  // its salt and all its tokens

// The same cache with nothing but maps: blocks are found by their whole prefix, and the one that
// became idle first is looked for among all.
class PlainCache {
 public:
  struct Block {
    explicit Block(int64_t* count) : count(count) { ++*count; }
    ~Block() { --*count; }
    int64_t* count;
    int64_t idle_since = 0;
  };
  using Blocks = std::vector<std::shared_ptr<Block>>;
  struct Sequence {
    Blocks blocks;
    int64_t stored = 0;
  };

  int64_t Idle() const {
    return std::ranges::count_if(cached_, [](const auto& e) { return e.second.use_count() == 1; });
  }
  int64_t Free() const { return kBlocks - used_ + Idle(); }

  void Attach(Sequence& sequence, const Prefix& prefix, int64_t limit) {
    for (int64_t end = kBlockSize; end <= std::ssize(prefix.second); end += kBlockSize) {
      const auto it = cached_.find(Part(prefix, end));
      if (end - kBlockSize >= limit || it == cached_.end()) return;
      sequence.blocks.push_back(it->second);
      sequence.stored = std::min(end, limit);
    }
  }
  void Fork(Sequence& sequence, const Sequence& from, int64_t limit) {
    sequence.stored = limit;
    sequence.blocks.assign(from.blocks.begin(), from.blocks.begin() + BlocksFor(limit));
  }
  bool Extend(Sequence& sequence, int64_t tokens) {
    const int64_t more = std::max<int64_t>(BlocksFor(tokens) - std::ssize(sequence.blocks), 0);
    const int64_t last = sequence.stored / kBlockSize;
    bool copy = tokens > sequence.stored && sequence.stored % kBlockSize != 0 &&
                sequence.blocks[last].use_count() > 1;
    if (more > Free()) return false;
    if (copy && more + 1 > Free()) {
      const auto entry =
          std::ranges::find(cached_, sequence.blocks[last], [](const auto& e) { return e.second; });
      if (entry == cached_.end() || sequence.blocks[last].use_count() > 2) return false;
      cached_.erase(entry);
      copy = false;
    }
    if (copy) {
      std::shared_ptr<Block> fresh = Allocate();
      Release(sequence.blocks[last]);
      sequence.blocks[last] = fresh;
    }
    while (std::ssize(sequence.blocks) < BlocksFor(tokens)) sequence.blocks.push_back(Allocate());
    return true;
  }
  void Commit(Sequence& sequence, const Prefix& prefix) {
    sequence.stored = std::ssize(prefix.second);
    for (int64_t i = 0; (i + 1) * kBlockSize <= sequence.stored; ++i) {
      auto& block = sequence.blocks[i];
      auto& entry = cached_[Part(prefix, (i + 1) * kBlockSize)];
      if (entry == nullptr) entry = block;
      if (entry == block) continue;
      Release(block);
      block = entry;
    }
  }
  void Free(Sequence& sequence) {
    for (; !sequence.blocks.empty(); sequence.blocks.pop_back()) Release(sequence.blocks.back());
    sequence.stored = 0;
  }

 private:
  static int64_t BlocksFor(int64_t tokens) { return (tokens + kBlockSize - 1) / kBlockSize; }
  static Prefix Part(const Prefix& prefix, int64_t tokens) {
    return {prefix.first, {prefix.second.begin(), prefix.second.begin() + tokens}};
  }
  std::shared_ptr<Block> Allocate() {
    if (used_ == kBlocks) {
      auto oldest = cached_.end();
      for (auto it = cached_.begin(); it != cached_.end(); ++it) {
        if (it->second.use_count() > 1) continue;
        if (oldest == cached_.end() || it->second->idle_since < oldest->second->idle_since)
          oldest = it;
      }
      cached_.erase(oldest);
    }
    return std::make_shared<Block>(&used_);
  }
  void Release(std::shared_ptr<Block>& block) {
    block->idle_since = ++now_;
    block.reset();
  }

  int64_t used_ = 0;
  int64_t now_ = 0;
  std::map<Prefix, std::shared_ptr<Block>> cached_;
};

// What runs: the cache, what its slots hold, and, where `plain`, the model.
class Life {
 public:
  Life(PrefixHashFunction hash, bool plain, std::unique_ptr<KvTiers> tiers = nullptr)
      : tiers_(tiers.get()),
        cache_(allocator_,
               {{.dtype = DType::kF32,
                 .kv_heads = 1,
                 .key_dim = 8,
                 .value_dim = 8,
                 .block_size = static_cast<int>(kBlockSize)}},
               kBlocks, {.hash = std::move(hash), .tiers = std::move(tiers)}),
        compares_(plain) {}

  // Tokens of prompts that were found.
  int64_t Run(int steps) {
    for (int i = 0; i < steps; ++i) {
      Step();
      Check();
    }
    while (!sequences_.empty()) End(0);
    RC_ASSERT(cache_.free_blocks() == kBlocks);
    RC_ASSERT(cache_.usage() == 0.0);
    return found_;
  }

 private:
  struct Sequence {
    Prefix prefix;
    KvSequence kv;
    PlainCache::Sequence plain;
  };

  static int Below(int n) { return *rc::gen::inRange(0, n); }

  void Step() {
    const int what = Below(8);
    if (sequences_.empty() || (what == 0 && std::ssize(sequences_) < kMostSequences))
      return Start();
    const size_t which = static_cast<size_t>(Below(static_cast<int>(sequences_.size())));
    if (what == 1 && std::ssize(sequences_) < kMostSequences) return Fork(*sequences_[which]);
    if (what == 2) return End(which);
    Compute(which);
  }

  void Start() {
    auto sequence = std::make_unique<Sequence>();
    sequence->prefix.first = Below(3) == 0 ? "a" : "";
    sequence->prefix.second.resize(static_cast<size_t>(1 + Below(12)));
    for (int32_t& token : sequence->prefix.second) token = Below(4) == 0 ? 1 : 0;
    const auto size = static_cast<int64_t>(sequence->prefix.second.size());
    const int64_t limit = Below(5) == 0 ? Below(static_cast<int>(size)) : size - 1;
    const PrefixRoot root{.salt = sequence->prefix.first};
    bool started = false;
    while (cache_.Fetch(root, sequence->prefix.second, !std::exchange(started, true)) ==
           KvCache::Fetched::kArriving) {
      if (Below(2) == 0) Compute();
      cache_.WaitForFetch();
    }
    found_ += cache_.Attach(sequence->kv, {.salt = sequence->prefix.first}, sequence->prefix.second,
                            limit);
    if (compares_) plain_.Attach(sequence->plain, sequence->prefix, limit);
    sequences_.push_back(std::move(sequence));
  }

  void Fork(const Sequence& from) {
    auto sequence = std::make_unique<Sequence>();
    const int64_t limit = Below(static_cast<int>(from.kv.stored()) + 1);
    sequence->prefix = from.prefix;
    sequence->prefix.second.resize(static_cast<size_t>(limit));
    cache_.Fork(sequence->kv, from.kv, limit);
    if (compares_) plain_.Fork(sequence->plain, from.plain, limit);
    sequences_.push_back(std::move(sequence));
  }

  void Compute() {
    if (!sequences_.empty())
      Compute(static_cast<size_t>(Below(static_cast<int>(sequences_.size()))));
  }

  // One step of it, with a guess or two that are not taken.
  void Compute(size_t which) {
    Sequence& s = *sequences_[which];
    const int64_t end = s.kv.stored() + 1 + Below(5);
    while (std::ssize(s.prefix.second) < end) s.prefix.second.push_back(Below(2));
    const int64_t room = end + Below(3);
    const bool extended = cache_.Extend(s.kv, room);
    if (compares_) RC_ASSERT(plain_.Extend(s.plain, room) == extended);
    if (!extended) return End(which);
    for (KvCopy copy : cache_.TakeCopies()) cache_.Copy(copy);
    for (int64_t i = s.kv.stored(); i < room; ++i) At(s, i) = Print(s, i, end);
    const std::vector<int32_t> stored(s.prefix.second.begin(), s.prefix.second.begin() + end);
    cache_.Commit(s.kv, stored);
    if (compares_) plain_.Commit(s.plain, {s.prefix.first, stored});
  }

  void End(size_t which) {
    cache_.Free(sequences_[which]->kv);
    if (compares_) plain_.Free(sequences_[which]->plain);
    sequences_.erase(sequences_.begin() + static_cast<int64_t>(which));
  }

  uint64_t& At(const Sequence& s, int64_t i) {
    const KvBlockPool& pool = cache_.pool();
    std::byte* block = pool.data(0) + s.kv.blocks()[i / kBlockSize] * (pool.bytes() / kBlocks);
    return reinterpret_cast<uint64_t*>(block)[i % kBlockSize];
  }

  // Of what the keys of token i depend on; past `end` a guess.
  uint64_t Print(const Sequence& s, int64_t i, int64_t end) const {
    if (i >= end) return 0;
    const PrefixLink root = PrefixIndex::RootLink(s.prefix.first);
    return HashPrefixBlock(root.hash, std::span(s.prefix.second).first(i + 1)).low;
  }

  void Check() {
    std::set<int32_t> held;
    for (const auto& s : sequences_) {
      held.insert(s->kv.blocks().begin(), s->kv.blocks().end());
      for (int64_t i = 0; i < s->kv.stored(); ++i) RC_ASSERT(At(*s, i) == Print(*s, i, i + 1));
      if (!compares_) continue;
      RC_ASSERT(s->kv.stored() == s->plain.stored);
      RC_ASSERT(s->kv.blocks().size() == s->plain.blocks.size());
    }
    RC_ASSERT(cache_.free_blocks() == kBlocks - std::ssize(held));
    if (tiers_ != nullptr) RC_ASSERT(tiers_->on_disk() <= 9);
    if (compares_) RC_ASSERT(cache_.free_blocks() == plain_.Free());
  }

  HostAllocator allocator_;
  KvTiers* tiers_;
  KvCache cache_;
  bool compares_;
  PlainCache plain_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  int64_t found_ = 0;
};

TEST(KvCacheRandom, IsThePlainCache) {
  int64_t found = 0;
  EXPECT_TRUE(
      rc::check([&] { found += Life(HashPrefixBlock, true).Run(*rc::gen::inRange(1, 200)); }));
  EXPECT_GT(found, 0);
}

// Four hashes for all: nearly every entry collides.
TEST(KvCacheRandom, ACollisionServesNoOthersKeys) {
  const auto weak = [](const PrefixHash& before, std::span<const int32_t> tokens) {
    return PrefixHash{.low = HashPrefixBlock(before, tokens).low % 4};
  };
  int64_t found = 0;
  EXPECT_TRUE(rc::check([&] { found += Life(weak, false).Run(*rc::gen::inRange(1, 90)); }));
  EXPECT_GT(found, 0);
}

// What left the pool comes back from memory and from disk as it was; a weak hash makes entries
// collide there, too.
TEST(KvCacheRandom, TiersBringBackWhatTheyGot) {
  constexpr int64_t kSlot = static_cast<int64_t>(DiskBuffer::kAlignment);
  const auto weak = [](const PrefixHash& before, std::span<const int32_t> tokens) {
    return PrefixHash{.low = HashPrefixBlock(before, tokens).low % 64};
  };
  for (const auto& [host, disk] : {std::pair(4, 0), std::pair(0, 8), std::pair(3, 9)}) {
    for (bool collide : {false, true}) {
      int64_t found = 0;
      EXPECT_TRUE(rc::check([&, host = host, disk = disk] {
        auto tiers = KvTiers::Create(
            192, {.host_bytes = host * kSlot, .disk_bytes = disk * kSlot, .disk_path = "/tmp"});
        RC_ASSERT(tiers.ok());
        found +=
            Life(collide ? PrefixHashFunction(weak) : HashPrefixBlock, false, *std::move(tiers))
                .Run(*rc::gen::inRange(1, 90));
      }));
      EXPECT_GT(found, 0);
    }
  }
}

}  // namespace
}  // namespace cadre
