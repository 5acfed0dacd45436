// KvDiskFile: fixed slots of bytes in a file that nobody else sees: it has no name, so it is gone
// when the program is. One thread of its own reads and writes, past the page cache where the file
// system allows that, so that whoever asks never waits for the disk.
//
// Start, TakeDone and WaitForDone: one thread at a time.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/status.h"

namespace cadre {

// Bytes that lie and end where direct reads and writes need it.
class DiskBuffer {
 public:
  static constexpr size_t kAlignment = 4096;
  explicit DiskBuffer(size_t bytes);  // rounded up
  ~DiskBuffer();
  DiskBuffer(const DiskBuffer&) = delete;
  DiskBuffer& operator=(const DiskBuffer&) = delete;

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_;
  size_t size_;
};

struct DiskJob {
  bool write = false;
  uint64_t tag = 0;  // the caller's
  int64_t slot = 0;
  std::shared_ptr<DiskBuffer> buffer;  // of one slot; read from or into until the job is done
  uint64_t checksum = 0;               // of a read: what is expected; of a write: set when done
  absl::Status status;  // kDataLoss: the bytes read are others; else what the system says
};

class KvDiskFile {
 public:
  // folder: where the file lies. slot_bytes: of one slot, rounded up as a DiskBuffer's.
  static absl::StatusOr<std::unique_ptr<KvDiskFile>> Create(const std::string& folder,
                                                            size_t slot_bytes);
  ~KvDiskFile();  // jobs that have not begun are dropped

  void Start(DiskJob job);
  // What is done since the last call, in the order in which it was started.
  std::vector<DiskJob> TakeDone();
  // Until something is done; nothing to wait for where nothing was started.
  void WaitForDone();

  int fd() const { return fd_; }  // for tests that break the disk

 private:
  KvDiskFile(int fd, size_t slot_bytes);
  void Run();
  absl::Status Transfer(const DiskJob& job) const;

  int fd_;
  size_t slot_bytes_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::deque<DiskJob> jobs_;
  std::vector<DiskJob> done_;
  bool busy_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace cadre
