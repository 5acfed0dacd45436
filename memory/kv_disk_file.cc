#include "memory/kv_disk_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace cadre {
namespace {

size_t RoundUp(size_t bytes) {
  return (bytes + DiskBuffer::kAlignment - 1) / DiskBuffer::kAlignment * DiskBuffer::kAlignment;
}

int OpenNameless(const std::string& folder) {
  const int direct = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_DIRECT, 0600);
  if (direct >= 0 || errno != EINVAL) return direct;
  return open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);  // as on some tmpfs
}

}  // namespace

DiskBuffer::DiskBuffer(size_t bytes)
    : data_(static_cast<std::byte*>(std::aligned_alloc(kAlignment, RoundUp(bytes)))),
      size_(RoundUp(bytes)) {
  CADRE_CHECK(data_ != nullptr, "out of memory: {} bytes", size_);
  std::memset(data_ + bytes, 0, size_ - bytes);
}

DiskBuffer::~DiskBuffer() { std::free(data_); }

absl::StatusOr<std::unique_ptr<KvDiskFile>> KvDiskFile::Create(const std::string& folder,
                                                               size_t slot_bytes) {
  const int fd = OpenNameless(folder);
  if (fd < 0) {
    return InvalidArgument(
        "kv_disk_cache_path: {}: {}; a folder that files can be made in is needed", folder,
        std::strerror(errno));
  }
  return std::unique_ptr<KvDiskFile>(new KvDiskFile(fd, RoundUp(slot_bytes)));
}

KvDiskFile::KvDiskFile(int fd, size_t slot_bytes)
    : fd_(fd), slot_bytes_(slot_bytes), thread_([this] { Run(); }) {}

KvDiskFile::~KvDiskFile() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  close(fd_);
}

void KvDiskFile::Start(DiskJob job) {
  {
    std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  changed_.notify_all();
}

std::vector<DiskJob> KvDiskFile::TakeDone() {
  std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}

void KvDiskFile::WaitForDone() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !done_.empty() || (jobs_.empty() && !busy_); });
}

absl::Status KvDiskFile::Transfer(const DiskJob& job) const {
  size_t moved = 0;
  while (moved < slot_bytes_) {
    const off_t at = job.slot * static_cast<off_t>(slot_bytes_) + static_cast<off_t>(moved);
    std::byte* bytes = job.buffer->data() + moved;
    const ssize_t n = job.write ? pwrite(fd_, bytes, slot_bytes_ - moved, at)
                                : pread(fd_, bytes, slot_bytes_ - moved, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return Unavailable("{}", std::strerror(errno));
    if (n == 0 && !job.write) return DataLoss("the file ends before slot {} does", job.slot);
    moved += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

void KvDiskFile::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    DiskJob job = std::move(jobs_.front());
    jobs_.pop_front();
    busy_ = true;
    lock.unlock();
    if (job.write) job.checksum = XXH3_64bits(job.buffer->data(), slot_bytes_);
    job.status = Transfer(job);
    if (job.status.ok() && !job.write &&
        XXH3_64bits(job.buffer->data(), slot_bytes_) != job.checksum)
      job.status = DataLoss("slot {} holds other bytes than were written", job.slot);
    lock.lock();
    busy_ = false;
    done_.push_back(std::move(job));
    changed_.notify_all();
  }
}

}  // namespace cadre
