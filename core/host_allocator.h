// HostAllocator: CPU memory that is kept and reused. Activations of one step have the sizes of the
// last; handing the pages back and faulting them in again would cost more than the kernels that
// fill them. Blocks are rounded up to one of eight sizes per power of two (at most 12.5 % over) and
// kept in a free list per size. A block that no list has is paid for with idle ones: those longest
// unused go back to the system until live and idle blocks together are at most 1/kIdleShare over
// the most that was ever live at once. So an evaluation or a last, shorter batch adds nothing to
// the peak of the steps before it.
//
// Thread-safe. Must outlive the storage that it gave.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <mutex>

#include "core/tensor.h"

namespace cadre {

class HostAllocator : public Allocator {
 public:
  static constexpr size_t kIdleShare = 16;

  HostAllocator() = default;
  ~HostAllocator() override;

  std::shared_ptr<Storage> Allocate(size_t bytes) override;

  // Gives the free blocks back to the system.
  void Trim();

  struct Usage {
    size_t live_bytes = 0;      // in storage that is alive
    size_t peak_bytes = 0;      // the most that live_bytes has been
    size_t reserved_bytes = 0;  // live and free blocks together
  };
  Usage usage() const;

 private:
  struct IdleBlock {
    std::byte* data = nullptr;
    uint64_t since = 0;  // returns_ at its return
  };
  static void Return(void* owner, std::byte* data, size_t bytes);
  std::byte* Reuse(size_t bytes);  // null where no block of this size is idle
  void MakeRoom(size_t bytes);
  bool ReleaseOldest();  // false where nothing is idle

  mutable std::mutex mutex_;
  std::map<size_t, std::deque<IdleBlock>> idle_;  // by rounded size, oldest first; none empty
  uint64_t returns_ = 0;
  Usage usage_;
};

}  // namespace cadre
