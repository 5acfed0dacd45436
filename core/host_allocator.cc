#include "core/host_allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace cadre {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;

size_t RoundUp(size_t bytes) {
  bytes = std::max(bytes, kAlignment);
  size_t step = std::max(kAlignment, std::bit_floor(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

std::byte* SystemAllocate(size_t bytes) {
  size_t alignment = bytes >= kHugePage ? kHugePage : kAlignment;
  void* data = nullptr;
  int error = posix_memalign(&data, alignment, bytes);
  CADRE_CHECK(error == 0, "out of memory: {} bytes", bytes);
  if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(data);
}

}  // namespace

HostAllocator::~HostAllocator() {
  Trim();
  CADRE_CHECK(usage_.live_bytes == 0, "{} bytes outlive their allocator", usage_.live_bytes);
}

std::shared_ptr<Storage> HostAllocator::Allocate(size_t bytes) {
  size_t rounded = RoundUp(bytes);
  std::byte* data = nullptr;
  {
    std::lock_guard lock(mutex_);
    usage_.live_bytes += rounded;
    usage_.peak_bytes = std::max(usage_.peak_bytes, usage_.live_bytes);
    auto it = free_.find(rounded);
    if (it != free_.end() && !it->second.empty()) {
      data = it->second.back();
      it->second.pop_back();
    } else {
      usage_.reserved_bytes += rounded;
    }
  }
  if (data == nullptr) data = SystemAllocate(rounded);
  return std::make_shared<Storage>(data, rounded, Device{}, &HostAllocator::Return, this);
}

void HostAllocator::Return(void* owner, std::byte* data, size_t bytes) {
  auto* self = static_cast<HostAllocator*>(owner);
  std::lock_guard lock(self->mutex_);
  self->usage_.live_bytes -= bytes;
  self->free_[bytes].push_back(data);
}

void HostAllocator::Trim() {
  std::lock_guard lock(mutex_);
  for (auto& [bytes, blocks] : free_) {
    for (std::byte* block : blocks) std::free(block);
    usage_.reserved_bytes -= bytes * blocks.size();
  }
  free_.clear();
}

HostAllocator::Usage HostAllocator::usage() const {
  std::lock_guard lock(mutex_);
  return usage_;
}

}  // namespace cadre
