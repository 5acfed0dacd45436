#include "core/read_ahead.h"

#include <algorithm>

namespace cadre {
namespace {

constexpr size_t kScratchBytes = size_t{4} << 20;

}  // namespace

ReadAhead::ReadAhead() : thread_(&ReadAhead::Loop, this) {}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

uint64_t ReadAhead::Add(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back(piece);
  changed_.notify_all();
  return ++added_;
}

absl::Status ReadAhead::Wait(uint64_t piece) {
  std::unique_lock lock(mutex_);
  CADRE_CHECK(piece <= added_, "piece {} of {}", piece, added_);
  changed_.wait(lock, [&] { return done_ >= piece || !failure_.ok(); });
  return done_ >= piece ? absl::OkStatus() : failure_;
}

absl::Status ReadAhead::Read(const Piece& piece) {
  if (!piece.to.empty()) return piece.file->ReadAt(piece.offset, piece.to);
  scratch_.resize(kScratchBytes);
  for (int64_t at = 0; at < piece.cached; at += static_cast<int64_t>(kScratchBytes)) {
    const auto bytes = std::min(kScratchBytes, static_cast<size_t>(piece.cached - at));
    CADRE_RETURN_IF_ERROR(piece.file->ReadAt(piece.offset + at, std::span(scratch_).first(bytes)));
  }
  return absl::OkStatus();
}

void ReadAhead::Loop() {
  while (true) {
    Piece piece;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      piece = waiting_.front();
      waiting_.pop_front();
    }
    absl::Status read = Read(piece);
    const std::lock_guard lock(mutex_);
    if (read.ok()) {
      ++done_;
    } else {
      failure_ = std::move(read);
      stopping_ = true;
    }
    changed_.notify_all();
    if (stopping_) return;
  }
}

}  // namespace cadre
