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
    data = Reuse(rounded);
    if (data == nullptr) MakeRoom(rounded);
  }
  if (data == nullptr) data = SystemAllocate(rounded);
  return std::make_shared<Storage>(data, rounded, Device{}, &HostAllocator::Return, this);
}

std::byte* HostAllocator::Reuse(size_t bytes) {
  const auto it = idle_.find(bytes);
  if (it == idle_.end()) return nullptr;
  std::byte* data = it->second.back().data;  // the newest: the likeliest to be in a cache
  it->second.pop_back();
  if (it->second.empty()) idle_.erase(it);
  return data;
}

void HostAllocator::MakeRoom(size_t bytes) {
  usage_.reserved_bytes += bytes;
  const size_t most = usage_.peak_bytes + usage_.peak_bytes / kIdleShare;
  while (usage_.reserved_bytes > most && ReleaseOldest()) {
  }
}

bool HostAllocator::ReleaseOldest() {
  if (idle_.empty()) return false;
  const auto it = std::ranges::min_element(
      idle_, {}, [](const auto& blocks) { return blocks.second.front().since; });
  std::free(it->second.front().data);
  usage_.reserved_bytes -= it->first;
  it->second.pop_front();
  if (it->second.empty()) idle_.erase(it);
  return true;
}

void HostAllocator::Return(void* owner, std::byte* data, size_t bytes) {
  auto* self = static_cast<HostAllocator*>(owner);
  std::lock_guard lock(self->mutex_);
  self->usage_.live_bytes -= bytes;
  self->idle_[bytes].push_back({data, self->returns_++});
}

void HostAllocator::Trim() {
  std::lock_guard lock(mutex_);
  while (ReleaseOldest()) {
  }
}

HostAllocator::Usage HostAllocator::usage() const {
  std::lock_guard lock(mutex_);
  return usage_;
}

}  // namespace cadre
