// ReadAhead: a thread that reads pieces of files in the order given, while others work with what
// is there already. One piece after the other of several MB is how disks, and the system's own
// reading ahead, are fastest.
//
//   ReadAhead reader;
//   const uint64_t last = reader.Add({&file, offset, memory});   // file.ReadInOrder() was called
//   ...
//   CADRE_RETURN_IF_ERROR(reader.Wait(last));                    // memory is filled
//
// Add and Wait from one thread. Files and memory outlive the pieces, or the object.
#pragma once

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
  // Until this piece and those before it are read. The error of the first that could not be, as
  // FileReader::ReadAt's; nothing is read after it.
  absl::Status Wait(uint64_t piece);

 private:
  void Loop();
  absl::Status Read(const Piece& piece);

  std::vector<std::byte> scratch_;  // of the thread
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Piece> waiting_;
  uint64_t added_ = 0, done_ = 0;
  absl::Status failure_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace cadre
