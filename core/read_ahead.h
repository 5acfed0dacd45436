// ReadAhead: threads that read pieces of files in the order given, while others work with what is
// there already. Pieces that lie one behind the other are read together, 16 MiB at a time and past
// the system's cache where that has them not: so disks are fastest, and a cache that nobody will
// read again takes no memory from others.
//
//   ReadAhead reader;
//   const uint64_t last = reader.Add({&file, offset, memory});
//   ...
//   CADRE_RETURN_IF_ERROR(reader.Wait(last));                    // memory is filled
//
// Add and Wait from one thread. Files and memory outlive the pieces, or the object.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "core/file.h"

namespace cadre {

class ReadAhead {
 public:
  struct Piece {
    const FileReader* file = nullptr;
    int64_t offset = 0;
    std::span<std::byte> to;
    // Where `to` is empty: so many bytes come into the system's cache alone.
    int64_t cached = 0;
  };

  ReadAhead();
  ReadAhead(const ReadAhead&) = delete;
  ReadAhead& operator=(const ReadAhead&) = delete;
  // What was not begun is dropped.
  ~ReadAhead();

  // The piece's number, from 1.
  uint64_t Add(const Piece& piece);
  // Until this piece and those before it are read. The error of one that could not be, as
  // FileReader::ReadAt's, is that of all behind it, and of those that were read with it.
  absl::Status Wait(uint64_t piece);

 private:
  // Neighbours, read by one thread at once.
  struct Run {
    uint64_t first = 0;  // number of the first piece
    std::vector<Piece> pieces;
  };

  void Loop();
  Run TakeRun();
  static absl::Status Read(const Run& run, DirectWindow& window);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> waiting_;
  std::deque<bool> read_;          // of the pieces behind done_
  uint64_t added_ = 0, done_ = 0;  // done_: this piece and all before it are read
  absl::Status failure_;
  uint64_t failed_ = 0;  // the first piece that could not be read; those before it were all begun
  bool stopping_ = false;
  // While one copies what it has read, the disk works for the other.
  std::array<std::thread, 2> threads_;
};

}  // namespace cadre
