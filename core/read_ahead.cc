#include "core/read_ahead.h"

#include <algorithm>
#include <cstring>

namespace cadre {
namespace {

constexpr int64_t kWindow = int64_t{16} << 20;

int64_t SizeOf(const ReadAhead::Piece& piece) { return std::ssize(piece.to); }

// Into the system's cache.
absl::Status Touch(const ReadAhead::Piece& piece, std::span<std::byte> scratch) {
  for (int64_t at = 0; at < piece.cached; at += std::ssize(scratch)) {
    const int64_t bytes = std::min(std::ssize(scratch), piece.cached - at);
    CADRE_RETURN_IF_ERROR(
        piece.file->ReadAt(piece.offset + at, scratch.first(static_cast<size_t>(bytes))));
  }
  return absl::OkStatus();
}

}  // namespace

ReadAhead::ReadAhead() {
  for (std::thread& thread : threads_) thread = std::thread(&ReadAhead::Loop, this);
}

ReadAhead::~ReadAhead() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

uint64_t ReadAhead::Add(const Piece& piece) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back(piece);
  read_.push_back(false);
  changed_.notify_all();
  return ++added_;
}

absl::Status ReadAhead::Wait(uint64_t piece) {
  std::unique_lock lock(mutex_);
  CADRE_CHECK(piece <= added_, "piece {} of {}", piece, added_);
  changed_.wait(lock, [&] { return done_ >= piece || (failed_ > 0 && failed_ <= piece); });
  return done_ >= piece ? absl::OkStatus() : failure_;
}

ReadAhead::Run ReadAhead::TakeRun() {
  Run run{.first = added_ - waiting_.size() + 1};
  int64_t bytes = 0;
  while (!waiting_.empty()) {
    const Piece& next = waiting_.front();
    if (!run.pieces.empty()) {
      const Piece& last = run.pieces.back();
      const bool follows = !last.to.empty() && !next.to.empty() && next.file == last.file &&
                           next.offset == last.offset + SizeOf(last);
      if (!follows || bytes + SizeOf(next) > kWindow) break;
    }
    bytes += SizeOf(next);
    run.pieces.push_back(next);
    waiting_.pop_front();
  }
  return run;
}

absl::Status ReadAhead::Read(const Run& run, DirectWindow& window) {
  const Piece &first = run.pieces.front(), &last = run.pieces.back();
  if (first.to.empty()) return Touch(first, window.bytes());
  const int64_t bytes = last.offset + SizeOf(last) - first.offset;
  std::span<const std::byte> found;
  if (bytes <= kWindow && !first.file->Cached(first.offset, bytes)) {
    found = first.file->ReadDirect(first.offset, bytes, window);
  }
  for (const Piece& piece : run.pieces) {
    if (found.empty()) {
      CADRE_RETURN_IF_ERROR(piece.file->ReadAt(piece.offset, piece.to));
    } else {
      std::memcpy(piece.to.data(), found.data() + (piece.offset - first.offset), piece.to.size());
    }
  }
  return absl::OkStatus();
}

void ReadAhead::Loop() {
  DirectWindow window(kWindow + 2 * kDirectAlignment);
  while (true) {
    Run run;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      run = TakeRun();
    }
    absl::Status read = Read(run, window);
    const std::lock_guard lock(mutex_);
    if (read.ok()) {
      for (uint64_t i = 0; i < run.pieces.size(); ++i) read_[run.first + i - done_ - 1] = true;
      for (; !read_.empty() && read_.front(); ++done_) read_.pop_front();
    } else {
      stopping_ = true;
      if (failed_ == 0 || run.first < failed_) {
        failed_ = run.first;
        failure_ = std::move(read);
      }
    }
    changed_.notify_all();
  }
}

}  // namespace cadre
