// KvTiers: where blocks of cached prefixes go when the pool needs their place: first to host
// memory, then to disk, the longest unused first, each within its bytes. It keeps entries of the
// prefix index together with their blocks' bytes, so that a block comes back with the bits and the
// place in its chain that it had. What is on disk is read by another thread; a block that comes
// back torn or flipped is dropped, and a disk that fails is off from then on, with one warning.
//
// One thread at a time (the engine's).
#pragma once

#include <functional>
#include <iterator>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "memory/kv_disk_file.h"
#include "memory/prefix_index.h"

namespace cadre {

struct KvTierOptions {
  int64_t host_bytes = 0;  // 0: none
  int64_t disk_bytes = 0;  // 0: none
  std::string disk_path;   // a folder
  std::function<void(const std::string&)> warn = [](const std::string&) {};
};

class KvTiers {
 public:
  // Bytes on their way from disk, and as many on their way to it, besides host_bytes: what one
  // prompt can get from there, and what it can send there. What goes beyond is dropped.
  static constexpr int64_t kMovingBytes = int64_t{256} << 20;

  // block_bytes: of one block over all layers. kInvalidArgument: no file can be made in disk_path,
  // or a tier is smaller than one block.
  static absl::StatusOr<std::unique_ptr<KvTiers>> Create(size_t block_bytes,
                                                         const KvTierOptions& options);

  // A buffer of one block, to be filled and handed to Put.
  std::shared_ptr<DiskBuffer> NewBuffer() const {
    return std::make_shared<DiskBuffer>(block_bytes_);
  }
  // Keeps an entry that has left the index, if there is room.
  void Put(PrefixEntry entry, std::shared_ptr<DiskBuffer> bytes);

  // Where the entry of `tokens` after `link` is.
  enum class Place { kNowhere, kMemory, kDisk, kArriving };
  Place Find(const std::string& root, const PrefixLink& link, std::span<const int32_t> tokens,
             PrefixLink* past);
  // Starts to read what Find said is on disk, named by the link past it. False: too much arrives
  // already.
  bool StartRead(const PrefixLink& past);
  // Somebody is about to take what Find said is in memory: bytes on their way to disk stay there
  // when they have arrived.
  void Want(const PrefixLink& past) { entries_.at(past.serial).wanted = true; }
  // Removes an entry, with its bytes where they are in memory.
  struct Taken {
    PrefixEntry entry;
    std::shared_ptr<DiskBuffer> bytes;  // null: on disk
  };
  Taken Take(const PrefixLink& past);

  // Sees what the disk has done since.
  void Poll();
  // Until the disk has done something that it was asked for.
  void WaitForDisk();
  void Clear();

  int64_t in_memory() const { return std::ssize(memory_) + std::ssize(arrived_); }
  int64_t on_disk() const { return static_cast<int64_t>(slots_used_); }
  bool disk_works() const { return disk_ != nullptr && !disk_failed_; }
  KvDiskFile* disk() { return disk_.get(); }

 private:
  using Age = std::list<uint64_t>;  // serials, longest unused first
  struct Spilled {
    PrefixEntry entry;
    std::shared_ptr<DiskBuffer> bytes;  // in memory, or on its way from or to the disk
    int64_t slot = -1;                  // on disk
    uint64_t checksum = 0;
    bool reading = false, writing = false, wanted = false;
    std::optional<Age::iterator> memory_age, disk_age;
  };

  KvTiers(size_t block_bytes, const KvTierOptions& options);
  Spilled* FindEntry(const PrefixHash& hash);
  void KeepInMemory(Spilled& spilled);
  void LeaveMemory(Spilled& spilled);
  // For one more block in memory besides on disk, the oldest of them leaving. False: all arrive.
  bool RoomToArrive();
  // Makes memory_ hold no more than it may: the oldest go to disk or are dropped.
  void Shrink();
  bool StartWrite(Spilled& spilled);
  std::optional<int64_t> FreeSlot();
  void Erase(uint64_t serial);
  void Finish(DiskJob& job);
  void TurnDiskOff(const absl::Status& why);

  size_t block_bytes_;
  int64_t memory_blocks_ = 0, disk_blocks_ = 0, moving_blocks_ = 0;
  std::function<void(const std::string&)> warn_;
  std::unordered_map<uint64_t, Spilled> entries_;   // by serial
  std::unordered_map<uint64_t, uint64_t> by_hash_;  // low half to serial
  // In memory alone; there besides on disk; on disk.
  Age memory_, arrived_, disk_ages_;
  std::vector<int64_t> free_slots_;
  int64_t slots_used_ = 0, next_slot_ = 0;
  int writes_ = 0, reads_ = 0;
  bool disk_failed_ = false;
  std::unique_ptr<KvDiskFile> disk_;
};

}  // namespace cadre
