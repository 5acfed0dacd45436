#include "parallel/shm_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <string>

#include "core/file.h"

namespace cadre {
namespace {

constexpr uint64_t kMagic = 0x31676573'72646163;  // "cadrseg1"
constexpr int kMaxRanks = 4096;

struct SegmentHeader {
  uint64_t magic;
  uint64_t ring_bytes;
  uint32_t ranks;
  alignas(64) std::atomic<uint32_t> gave_up;
};

// Rings share 64 MiB, so that hosts with many ranks do not take gigabytes. Half a megabyte stays
// in a core's second-level cache.
size_t RingBytes(int ranks) {
  constexpr size_t kAll = 64 << 20, kLeast = 16 << 10, kMost = 512 << 10;
  const auto pairs = static_cast<size_t>(std::max(1, ranks * (ranks - 1)));
  return std::bit_floor(std::clamp(kAll / pairs, kLeast, kMost));
}

}  // namespace

size_t ShmSegment::TotalBytes(int ranks, size_t ring_bytes) {
  const auto n = static_cast<size_t>(ranks);
  return sizeof(SegmentHeader) + n * sizeof(ShmRankSlot) +
         n * n * (sizeof(ShmRingHeader) + ring_bytes);
}

int64_t ShmSegment::BytesPerRank(int ranks) {
  return 2 * static_cast<int64_t>(ranks - 1) *
         static_cast<int64_t>(sizeof(ShmRingHeader) + RingBytes(ranks));
}

absl::Status ShmSegment::Map(int descriptor, int ranks) {
  descriptor_ = descriptor;
  ranks_ = ranks;
  ring_bytes_ = RingBytes(ranks);
  bytes_ = TotalBytes(ranks, ring_bytes_);
  void* base = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (base == MAP_FAILED) return ErrnoError("shared memory", "cannot map it", errno);
  base_ = static_cast<std::byte*>(base);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Create(int ranks) {
  CADRE_CHECK(ranks >= 1);
  if (ranks > kMaxRanks)
    return InvalidArgument("{} ranks on one host, {} at most", ranks, kMaxRanks);
  const int descriptor = memfd_create("cadre-ranks", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0) return ErrnoError("shared memory", "cannot create it", errno);
  std::unique_ptr<ShmSegment> segment(new ShmSegment);
  segment->descriptor_ = descriptor;
  // Pages are taken when they are first written: rings that nobody uses cost nothing.
  const size_t bytes = TotalBytes(ranks, RingBytes(ranks));
  if (ftruncate(descriptor, static_cast<off_t>(bytes)) != 0 ||
      fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return ErrnoError("shared memory", fmt::format("cannot size it to {} bytes", bytes), errno);
  }
  CADRE_RETURN_IF_ERROR(segment->Map(descriptor, ranks));
  auto* header = reinterpret_cast<SegmentHeader*>(segment->base_);
  header->ring_bytes = segment->ring_bytes_;
  header->ranks = static_cast<uint32_t>(ranks);
  header->magic = kMagic;
  return segment;
}

absl::StatusOr<std::unique_ptr<ShmSegment>> ShmSegment::Open(const ShmHandle& handle) {
  if (handle.ranks < 1 || handle.ranks > kMaxRanks) {
    return InvalidArgument("shared memory for {} ranks, 1 to {} are allowed", handle.ranks,
                           kMaxRanks);
  }
  const std::string path = fmt::format("/proc/{}/fd/{}", handle.pid, handle.descriptor);
  const int descriptor = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return ErrnoError(path, "cannot open the host's shared memory", errno);
  std::unique_ptr<ShmSegment> segment(new ShmSegment);
  segment->descriptor_ = descriptor;
  struct stat info = {};
  const size_t bytes = TotalBytes(handle.ranks, RingBytes(handle.ranks));
  if (fstat(descriptor, &info) != 0 || info.st_size != static_cast<off_t>(bytes)) {
    return InvalidArgument("{}: {} bytes, {} are the shared memory of {} ranks", path, info.st_size,
                           bytes, handle.ranks);
  }
  CADRE_RETURN_IF_ERROR(segment->Map(descriptor, handle.ranks));
  const auto* header = reinterpret_cast<const SegmentHeader*>(segment->base_);
  if (header->magic != kMagic || header->ranks != static_cast<uint32_t>(handle.ranks) ||
      header->ring_bytes != segment->ring_bytes_) {
    return InvalidArgument("{}: not the shared memory of {} ranks", path, handle.ranks);
  }
  return segment;
}

ShmSegment::~ShmSegment() {
  if (base_ != nullptr) munmap(base_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

ShmHandle ShmSegment::handle() const {
  return {.pid = getpid(), .descriptor = descriptor_, .ranks = ranks_};
}

ShmRankSlot& ShmSegment::slot(int rank) const {
  CADRE_CHECK(rank >= 0 && rank < ranks_);
  return reinterpret_cast<ShmRankSlot*>(base_ + sizeof(SegmentHeader))[rank];
}

ShmRingHeader& ShmSegment::ring(int from, int to) const {
  const auto n = static_cast<size_t>(ranks_);
  const size_t index = static_cast<size_t>(from) * n + static_cast<size_t>(to);
  std::byte* rings = base_ + sizeof(SegmentHeader) + n * sizeof(ShmRankSlot);
  return *reinterpret_cast<ShmRingHeader*>(rings + index * (sizeof(ShmRingHeader) + ring_bytes_));
}

std::byte* ShmSegment::ring_data(int from, int to) const {
  return reinterpret_cast<std::byte*>(&ring(from, to)) + sizeof(ShmRingHeader);
}

std::atomic<uint32_t>& ShmSegment::gave_up() const {
  return reinterpret_cast<SegmentHeader*>(base_)->gave_up;
}

}  // namespace cadre
