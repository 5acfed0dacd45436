#include "memory/kv_tiers.h"

#include <algorithm>

namespace cadre {

absl::StatusOr<std::unique_ptr<KvTiers>> KvTiers::Create(size_t block_bytes,
                                                         const KvTierOptions& options) {
  const auto block = static_cast<int64_t>(DiskBuffer(block_bytes).size());
  for (const auto& [name, bytes] : {std::pair("kv_host_cache_bytes", options.host_bytes),
                                    std::pair("kv_disk_cache_bytes", options.disk_bytes)}) {
    if (bytes != 0 && bytes < block)
      return InvalidArgument("{}: {}, one block takes {}", name, bytes, block);
  }
  std::unique_ptr<KvTiers> tiers(new KvTiers(block_bytes, options));
  tiers->memory_blocks_ = options.host_bytes / block;
  tiers->disk_blocks_ = options.disk_bytes / block;
  if (tiers->disk_blocks_ > 0) {
    tiers->moving_blocks_ = std::max<int64_t>(kMovingBytes / block, 1);
    CADRE_ASSIGN_OR_RETURN(tiers->disk_, KvDiskFile::Create(options.disk_path, block_bytes));
  }
  return tiers;
}

KvTiers::KvTiers(size_t block_bytes, const KvTierOptions& options)
    : block_bytes_(block_bytes), warn_(options.warn) {}

KvTiers::Spilled* KvTiers::FindEntry(const PrefixHash& hash) {
  const auto it = by_hash_.find(hash.low);
  return it == by_hash_.end() ? nullptr : &entries_.at(it->second);
}

void KvTiers::KeepInMemory(Spilled& spilled) {
  Age& ages = spilled.slot < 0 ? memory_ : arrived_;
  spilled.memory_age = ages.insert(ages.end(), spilled.entry.serial);
}

void KvTiers::LeaveMemory(Spilled& spilled) {
  if (!spilled.memory_age) return;
  (spilled.slot < 0 ? memory_ : arrived_).erase(*spilled.memory_age);
  spilled.memory_age.reset();
}

void KvTiers::Put(PrefixEntry entry, std::shared_ptr<DiskBuffer> bytes) {
  Poll();
  if (const Spilled* old = FindEntry(entry.hash)) Erase(old->entry.serial);
  const uint64_t serial = entry.serial;
  by_hash_[entry.hash.low] = serial;
  Spilled& spilled = entries_[serial];
  spilled.entry = std::move(entry);
  spilled.bytes = std::move(bytes);
  KeepInMemory(spilled);
  Shrink();
}

KvTiers::Place KvTiers::Find(const std::string& root, const PrefixLink& link,
                             std::span<const int32_t> tokens, PrefixLink* past) {
  const Spilled* spilled = FindEntry(past->hash);
  if (spilled == nullptr || !spilled->entry.Is(root, link, tokens)) return Place::kNowhere;
  past->serial = spilled->entry.serial;
  if (spilled->reading) return Place::kArriving;
  return spilled->bytes != nullptr ? Place::kMemory : Place::kDisk;
}

bool KvTiers::RoomToArrive() {
  if (reads_ + std::ssize(arrived_) < moving_blocks_) return true;
  if (arrived_.empty()) return false;
  Spilled& oldest = entries_.at(arrived_.front());
  LeaveMemory(oldest);
  oldest.bytes.reset();
  return true;
}

bool KvTiers::StartRead(const PrefixLink& past) {
  Spilled& spilled = entries_.at(past.serial);
  if (!RoomToArrive()) return false;
  disk_ages_.splice(disk_ages_.end(), disk_ages_, *spilled.disk_age);
  spilled.reading = true;
  spilled.bytes = NewBuffer();
  ++reads_;
  disk_->Start({.tag = past.serial,
                .slot = spilled.slot,
                .buffer = spilled.bytes,
                .checksum = spilled.checksum});
  return true;
}

KvTiers::Taken KvTiers::Take(const PrefixLink& past) {
  Spilled& spilled = entries_.at(past.serial);
  Taken taken{spilled.entry, spilled.reading ? nullptr : spilled.bytes};
  Erase(past.serial);
  return taken;
}

void KvTiers::Erase(uint64_t serial) {
  const auto it = entries_.find(serial);
  Spilled& spilled = it->second;
  LeaveMemory(spilled);
  if (spilled.disk_age) disk_ages_.erase(*spilled.disk_age);
  // A job's slot is free when it is done.
  if (spilled.slot >= 0 && !spilled.reading && !spilled.writing) {
    free_slots_.push_back(spilled.slot);
    --slots_used_;
  }
  by_hash_.erase(spilled.entry.hash.low);
  entries_.erase(it);
}

void KvTiers::Shrink() {
  while (std::ssize(memory_) > memory_blocks_) {
    Spilled& oldest = entries_.at(memory_.front());
    LeaveMemory(oldest);
    if (!StartWrite(oldest)) Erase(oldest.entry.serial);
  }
}

std::optional<int64_t> KvTiers::FreeSlot() {
  if (free_slots_.empty() && next_slot_ < disk_blocks_) free_slots_.push_back(next_slot_++);
  if (free_slots_.empty()) {
    const auto idle = std::ranges::find_if(disk_ages_, [this](uint64_t serial) {
      const Spilled& spilled = entries_.at(serial);
      return !spilled.reading && !spilled.writing;
    });
    if (idle == disk_ages_.end()) return std::nullopt;
    Erase(*idle);
  }
  const int64_t slot = free_slots_.back();
  free_slots_.pop_back();
  ++slots_used_;
  return slot;
}

bool KvTiers::StartWrite(Spilled& spilled) {
  if (!disk_works() || writes_ >= moving_blocks_) return false;
  const std::optional<int64_t> slot = FreeSlot();
  if (!slot) return false;
  spilled.slot = *slot;
  spilled.writing = true;
  spilled.disk_age = disk_ages_.insert(disk_ages_.end(), spilled.entry.serial);
  ++writes_;
  disk_->Start(
      {.write = true, .tag = spilled.entry.serial, .slot = *slot, .buffer = spilled.bytes});
  return true;
}

void KvTiers::Finish(DiskJob& job) {
  --(job.write ? writes_ : reads_);
  const auto it = entries_.find(job.tag);
  if (it == entries_.end() || it->second.slot != job.slot) {  // taken, and perhaps back, meanwhile
    free_slots_.push_back(job.slot);
    --slots_used_;
  } else {
    Spilled& spilled = it->second;
    (job.write ? spilled.writing : spilled.reading) = false;
    if (!job.status.ok()) {
      Erase(job.tag);
    } else {
      if (job.write) spilled.checksum = job.checksum;
      if (job.write && !(spilled.wanted && RoomToArrive())) spilled.bytes.reset();
      if (spilled.bytes != nullptr) KeepInMemory(spilled);
    }
  }
  if (!job.status.ok() && job.status.code() != absl::StatusCode::kDataLoss) TurnDiskOff(job.status);
}

void KvTiers::TurnDiskOff(const absl::Status& why) {
  if (disk_failed_) return;
  disk_failed_ = true;
  warn_(fmt::format("kv_disk_cache_path: {}; the disk tier is off", Message(why)));
  std::vector<uint64_t> gone;
  for (const auto& [serial, spilled] : entries_) {
    if (spilled.slot >= 0 && spilled.bytes == nullptr) gone.push_back(serial);
  }
  for (uint64_t serial : gone) Erase(serial);
}

void KvTiers::Poll() {
  if (disk_ == nullptr || reads_ + writes_ == 0) return;
  for (DiskJob& job : disk_->TakeDone()) Finish(job);
}

void KvTiers::WaitForDisk() {
  if (disk_ != nullptr && reads_ + writes_ > 0) disk_->WaitForDone();
}

void KvTiers::Clear() {
  while (!entries_.empty()) Erase(entries_.begin()->first);
}

}  // namespace cadre
