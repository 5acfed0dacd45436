#include "memory/kv_cache.h"

#include <algorithm>

namespace cadre {
namespace {

std::string Describe(std::span<const ops::KvLayout> layouts) {
  std::string type;
  for (const ops::KvLayout& layout : layouts) {
    type += fmt::format("{}/{},", Name(layout.dtype), static_cast<int>(layout.quantization));
  }
  return type;
}

}  // namespace

KvCache::KvCache(Allocator& allocator, std::vector<ops::KvLayout> layouts, int64_t blocks,
                 KvCacheOptions options)
    : pool_(allocator, layouts, blocks),
      index_(blocks, std::move(options.hash)),
      prefix_caching_(options.prefix_caching),
      kv_type_(Describe(layouts)),
      tiers_(std::move(options.tiers)) {}

std::string KvCache::RootOf(const PrefixRoot& root) const {
  // With their lengths, so that no two roots are written alike.
  return fmt::format("{} {} {}:{} {}:{}", weight_version_, kv_type_, root.adapter.size(),
                     root.adapter, root.salt.size(), root.salt);
}

int32_t KvCache::Allocate() {
  if (pool_.free_blocks() == 0) {
    auto [block, entry] = index_.EvictOldest();
    if (tiers_ != nullptr) {
      std::shared_ptr<DiskBuffer> bytes = tiers_->NewBuffer();
      pool_.Read(block, bytes->data());
      tiers_->Put(std::move(entry), std::move(bytes));
    }
    pool_.Release(block);
  }
  return *pool_.Allocate();
}

std::optional<PrefixIndex::Hit> KvCache::Hold(const std::string& root, const PrefixLink& link,
                                              std::span<const int32_t> tokens) {
  if (const auto hit = index_.Find(root, link, tokens)) {
    Share(hit->block);
    return hit;
  }
  PrefixLink past{index_.HashOf(link, tokens)};
  if (tiers_ == nullptr || free_blocks() == 0 || index_.ContainsHash(past.hash) ||
      tiers_->Find(root, link, tokens, &past) != KvTiers::Place::kMemory)
    return std::nullopt;
  auto [entry, bytes] = tiers_->Take(past);
  const int32_t block = Allocate();
  // Copies that wait may read the block that is written now.
  for (const KvCopy& copy : TakeCopies()) Copy(copy);
  pool_.Write(block, bytes->data());
  index_.Restore(std::move(entry), block);
  pool_.Share(block);
  return PrefixIndex::Hit{block, past};
}

KvCache::Fetched KvCache::Fetch(const PrefixRoot& root, std::span<const int32_t> tokens,
                                bool start) {
  if (tiers_ == nullptr || tiers_->disk() == nullptr) return Fetched::kHere;
  tiers_->Poll();
  const std::string below = RootOf(root);
  PrefixLink link = PrefixIndex::RootLink(below);
  const auto size = static_cast<size_t>(block_size());
  Fetched fetched = Fetched::kHere;
  for (size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    const auto next = tokens.subspan(begin, size);
    if (const auto hit = index_.Find(below, link, next)) {
      link = hit->link;
      continue;
    }
    PrefixLink past{index_.HashOf(link, next)};
    const KvTiers::Place place = tiers_->Find(below, link, next, &past);
    if (place == KvTiers::Place::kNowhere) break;
    if (place == KvTiers::Place::kDisk && (!start || !tiers_->StartRead(past))) {
      return fetched == Fetched::kHere ? Fetched::kOnDisk : fetched;
    }
    if (place == KvTiers::Place::kMemory) {
      tiers_->Want(past);
    } else {
      fetched = Fetched::kArriving;
    }
    link = past;
  }
  return fetched;
}

void KvCache::WaitForFetch() {
  if (tiers_ != nullptr) tiers_->WaitForDisk();
}

void KvCache::Share(int32_t block) {
  if (index_.Contains(block) && pool_.references(block) == 1) index_.SetBusy(block);
  pool_.Share(block);
}

void KvCache::Release(int32_t block) {
  pool_.Release(block);
  if (index_.Contains(block) && pool_.references(block) == 1) index_.SetIdle(block);
}

int32_t KvCache::ReferencesOfLast(const KvSequence& sequence) const {
  const int64_t index = sequence.stored_ / block_size();
  if (sequence.stored_ % block_size() == 0) return 1;
  return pool_.references(sequence.blocks_[index]);
}

bool KvCache::SharedAtAll(const KvSequence& sequence) const {
  return ReferencesOfLast(sequence) > 1;
}

bool KvCache::SharedWithSequences(const KvSequence& sequence) const {
  if (!SharedAtAll(sequence)) return false;
  const bool indexed = index_.Contains(sequence.blocks_[sequence.stored_ / block_size()]);
  return ReferencesOfLast(sequence) > (indexed ? 2 : 1);
}

int64_t KvCache::BlocksNeeded(const KvSequence& sequence, int64_t tokens) const {
  const auto held = static_cast<int64_t>(sequence.blocks_.size());
  const int64_t copied = tokens > sequence.stored_ && SharedWithSequences(sequence) ? 1 : 0;
  return std::max<int64_t>(BlocksFor(tokens) - held, 0) + copied;
}

int64_t KvCache::Attach(KvSequence& sequence, const PrefixRoot& root,
                        std::span<const int32_t> tokens, int64_t limit) {
  CADRE_CHECK(sequence.blocks_.empty(), "it holds {} blocks", sequence.blocks_.size());
  if (!prefix_caching_) return 0;
  sequence.root_ = RootOf(root);
  sequence.weight_version_ = weight_version_;
  PrefixLink link = PrefixIndex::RootLink(sequence.root_);
  const auto size = static_cast<size_t>(block_size());
  for (size_t begin = 0; begin + size <= tokens.size(); begin += size) {
    if (static_cast<int64_t>(begin) >= limit) break;
    const auto hit = Hold(sequence.root_, link, tokens.subspan(begin, size));
    if (!hit) break;
    link = hit->link;
    sequence.blocks_.push_back(hit->block);
    sequence.stored_ = std::min(static_cast<int64_t>(begin + size), limit);
    // A block that is not held whole will be written, so it is no part of the chain.
    if (sequence.stored_ % block_size() == 0) sequence.links_.push_back(link);
  }
  return sequence.stored_;
}

int64_t KvCache::Fork(KvSequence& sequence, const KvSequence& from, int64_t limit) {
  CADRE_CHECK(sequence.blocks_.empty(), "it holds {} blocks", sequence.blocks_.size());
  CADRE_CHECK(limit <= from.stored_, "{} tokens of {}", limit, from.stored_);
  if (!prefix_caching_) return 0;
  sequence.root_ = from.root_;
  sequence.weight_version_ = from.weight_version_;
  for (int32_t block : std::span(from.blocks_).first(static_cast<size_t>(BlocksFor(limit)))) {
    Share(block);
    sequence.blocks_.push_back(block);
  }
  const auto whole = static_cast<size_t>(limit / block_size());
  sequence.links_.assign(from.links_.begin(),
                         from.links_.begin() + std::min(from.links_.size(), whole));
  sequence.stored_ = limit;
  return limit;
}

bool KvCache::Extend(KvSequence& sequence, int64_t tokens) {
  if (BlocksNeeded(sequence, tokens) > free_blocks()) return false;
  if (tokens > sequence.stored_ && SharedAtAll(sequence)) {
    int32_t& last = sequence.blocks_[sequence.stored_ / block_size()];
    const int64_t more =
        std::max<int64_t>(BlocksFor(tokens) - static_cast<int64_t>(sequence.blocks_.size()), 0);
    if (more + 1 > free_blocks()) {
      // The index alone holds it besides, and has no other block to give up.
      index_.Erase(last);
      pool_.Release(last);
    } else {
      copies_.push_back({last, Allocate()});
      Release(last);
      last = copies_.back().to;
    }
  }
  while (static_cast<int64_t>(sequence.blocks_.size()) < BlocksFor(tokens)) {
    sequence.blocks_.push_back(Allocate());
  }
  return true;
}

bool KvCache::IndexNext(KvSequence& sequence, std::span<const int32_t> tokens) {
  const size_t next = sequence.links_.size();
  int32_t& block = sequence.blocks_[next];
  const PrefixLink link =
      next == 0 ? PrefixIndex::RootLink(sequence.root_) : sequence.links_.back();
  if (const auto hit = index_.Find(sequence.root_, link, tokens)) {
    if (hit->block != block) {
      Share(hit->block);
      Release(block);
      block = hit->block;
    }
    sequence.links_.push_back(hit->link);
    return true;
  }
  if (index_.Contains(block)) return false;
  // What was computed anew is what a tier has; it goes on under its own name.
  PrefixLink spilled{index_.HashOf(link, tokens)};
  if (tiers_ != nullptr && !index_.ContainsHash(spilled.hash) &&
      tiers_->Find(sequence.root_, link, tokens, &spilled) != KvTiers::Place::kNowhere) {
    index_.Restore(tiers_->Take(spilled).entry, block);
    pool_.Share(block);
    sequence.links_.push_back(spilled);
    return true;
  }
  const auto [past, dropped] = index_.Insert(sequence.root_, link, tokens, block);
  if (dropped) pool_.Release(*dropped);
  if (!past) return false;
  pool_.Share(block);
  sequence.links_.push_back(*past);
  return true;
}

void KvCache::Commit(KvSequence& sequence, std::span<const int32_t> tokens) {
  const auto stored = static_cast<int64_t>(tokens.size());
  const auto room = static_cast<int64_t>(sequence.blocks_.size()) * block_size();
  CADRE_CHECK(stored >= sequence.stored_ && stored <= room, "{} tokens after {} in room for {}",
              stored, sequence.stored_, room);
  sequence.stored_ = stored;
  if (sequence.weight_version_ != weight_version_) sequence.root_.clear();
  const auto size = static_cast<size_t>(block_size());
  while (!sequence.root_.empty() && (sequence.links_.size() + 1) * size <= tokens.size()) {
    if (IndexNext(sequence, tokens.subspan(sequence.links_.size() * size, size))) continue;
    sequence.root_.clear();  // what follows could not be found either
  }
}

void KvCache::Free(KvSequence& sequence) {
  // The last first: what hangs from others leaves the index before them.
  while (!sequence.blocks_.empty()) {
    Release(sequence.blocks_.back());
    sequence.blocks_.pop_back();
  }
  sequence = {};
}

void KvCache::DropBytes() {
  while (index_.idle() > 0) pool_.Release(index_.EvictOldest().block);
  if (tiers_ != nullptr) tiers_->Clear();
  copies_.clear();
  pool_.DropBytes();
}

}  // namespace cadre
