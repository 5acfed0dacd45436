// HostAllocator: CPU memory that is kept and reused. Activations of one step have the sizes of the
// last; handing the pages back and faulting them in again would cost more than the kernels that
// fill them. Blocks are rounded up to one of eight sizes per power of two (at most 12.5 % over),
// kept in a free list per size, and given back to the system by Trim.
//
// Thread-safe. Must outlive the storage that it gave.
#pragma once

#include <map>
#include <mutex>
#include <vector>

#include "core/tensor.h"

namespace cadre {

class HostAllocator : public Allocator {
 public:
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
  static void Return(void* owner, std::byte* data, size_t bytes);

  mutable std::mutex mutex_;
  std::map<size_t, std::vector<std::byte*>> free_;  // by rounded size
  Usage usage_;
};

}  // namespace cadre
