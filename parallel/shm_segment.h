// ShmSegment: the memory that the ranks of one host share: a slot per rank and a ring of bytes for
// every ordered pair of ranks.
//
// It has no name: its creator hands out a process number and a descriptor (ShmHandle), which others
// of the same user open through /proc; so nothing is left behind whoever dies when. It cannot be
// shrunk under its readers. Local ranks count from 0 on each host, in the order of the world.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/status.h"
#include "parallel/doorbell.h"

namespace cadre {

// Where a segment can be opened; plain data that ranks exchange.
struct ShmHandle {
  int64_t pid = 0;
  int32_t descriptor = -1;
  int32_t ranks = 0;
};

// One direction between two ranks: bytes in order, written by one side, read by the other.
struct ShmRingHeader {
  alignas(64) std::atomic<uint64_t> written;  // bytes ever, by the writer
  std::atomic<uint32_t> writer_waits;         // the writer wants a ring when space is freed
  alignas(64) std::atomic<uint64_t> read;     // bytes ever, by the reader
};

enum class RankState : uint32_t { kPresent, kLeft, kGaveUp };

struct ShmRankSlot {
  static constexpr size_t kReasonBytes = 240;

  Doorbell::State doorbell;
  alignas(64) std::atomic<RankState> state;
  // Written once, before state becomes kGaveUp.
  int32_t culprit;
  char reason[kReasonBytes];
};

class ShmSegment {
 public:
  // kResourceExhausted: the host has no memory for it.
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Create(int ranks);
  // kInvalidArgument: what is behind the handle is no segment for so many ranks.
  static absl::StatusOr<std::unique_ptr<ShmSegment>> Open(const ShmHandle& handle);
  ~ShmSegment();
  ShmSegment(const ShmSegment&) = delete;
  ShmSegment& operator=(const ShmSegment&) = delete;

  // What a rank comes to hold of a segment for so many: its rings to and from each of the others.
  static int64_t BytesPerRank(int ranks);

  // Good for as long as the creator lives.
  ShmHandle handle() const;
  int ranks() const { return ranks_; }
  size_t ring_bytes() const { return ring_bytes_; }  // a power of two

  ShmRankSlot& slot(int rank) const;
  ShmRingHeader& ring(int from, int to) const;
  std::byte* ring_data(int from, int to) const;
  // How many ranks gave up; cheap to look at often.
  std::atomic<uint32_t>& gave_up() const;

 private:
  ShmSegment() = default;
  static size_t TotalBytes(int ranks, size_t ring_bytes);
  absl::Status Map(int descriptor, int ranks);

  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
  int ranks_ = 0;
  size_t ring_bytes_ = 0;
  int descriptor_ = -1;
};

}  // namespace cadre
