#include "memory/prefix_index.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "core/status.h"

namespace cadre {
namespace {

PrefixHash ToHash(const XXH128_hash_t& hash) { return {hash.low64, hash.high64}; }

}  // namespace

PrefixHash HashPrefixBlock(const PrefixHash& before, std::span<const int32_t> tokens) {
  std::vector<std::byte> bytes(sizeof(before) + tokens.size_bytes());
  std::memcpy(bytes.data(), &before, sizeof(before));
  std::memcpy(bytes.data() + sizeof(before), tokens.data(), tokens.size_bytes());
  return ToHash(XXH3_128bits(bytes.data(), bytes.size()));
}

PrefixLink PrefixIndex::RootLink(const std::string& root) {
  return {.hash = ToHash(XXH3_128bits(root.data(), root.size()))};
}

bool PrefixEntry::Is(const std::string& below, const PrefixLink& link,
                     std::span<const int32_t> ids) const {
  return before == link.serial && (before != 0 || root == below) && std::ranges::equal(tokens, ids);
}

std::optional<PrefixIndex::Hit> PrefixIndex::Find(const std::string& root, const PrefixLink& link,
                                                  std::span<const int32_t> tokens) const {
  const PrefixHash hash = hash_(link.hash, tokens);
  const auto it = blocks_.find(hash);
  if (it == blocks_.end()) return std::nullopt;
  const PrefixEntry& entry = entries_[it->second].entry;
  if (!entry.Is(root, link, tokens)) return std::nullopt;
  return Hit{it->second, {hash, entry.serial}};
}

PrefixIndex::Insertion PrefixIndex::Insert(const std::string& root, const PrefixLink& link,
                                           std::span<const int32_t> tokens, int32_t block) {
  CADRE_CHECK(!Contains(block), "block {} is an entry", block);
  Insertion result;
  const PrefixHash hash = hash_(link.hash, tokens);
  if (const auto it = blocks_.find(hash); it != blocks_.end()) {
    const int32_t other = it->second;
    if (!entries_[other].idle) return result;
    Erase(other);
    result.dropped = other;
  }
  entries_[block].entry = {.serial = ++last_serial_,
                           .before = link.serial,
                           .hash = hash,
                           .root = link.serial == 0 ? root : std::string(),
                           .tokens = {tokens.begin(), tokens.end()}};
  blocks_[hash] = block;
  result.link = {hash, last_serial_};
  return result;
}

void PrefixIndex::Restore(PrefixEntry entry, int32_t block) {
  CADRE_CHECK(!Contains(block) && !blocks_.contains(entry.hash), "block {} or its hash is an entry",
              block);
  blocks_[entry.hash] = block;
  entries_[block].entry = std::move(entry);
}

void PrefixIndex::Erase(int32_t block) {
  CADRE_CHECK(Contains(block), "block {} is no entry", block);
  Place& place = entries_[block];
  blocks_.erase(place.entry.hash);
  if (place.idle) idle_.erase(*place.idle);
  place = {};
}

void PrefixIndex::SetIdle(int32_t block) {
  Place& entry = entries_[block];
  CADRE_CHECK(Contains(block) && !entry.idle, "block {} is no busy entry", block);
  entry.idle = idle_.insert(idle_.end(), block);
}

void PrefixIndex::SetBusy(int32_t block) {
  Place& entry = entries_[block];
  CADRE_CHECK(Contains(block) && entry.idle, "block {} is no idle entry", block);
  idle_.erase(*entry.idle);
  entry.idle.reset();
}

PrefixIndex::Evicted PrefixIndex::EvictOldest() {
  CADRE_CHECK(!idle_.empty(), "every entry is in use");
  Evicted evicted{idle_.front(), std::move(entries_[idle_.front()].entry)};
  blocks_.erase(evicted.entry.hash);
  idle_.pop_front();
  entries_[evicted.block] = {};
  return evicted;
}

}  // namespace cadre
