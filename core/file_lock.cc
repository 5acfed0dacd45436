#include "core/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <utility>

#include "core/file.h"

namespace cadre {
namespace {

// "process 4711 on node3"
std::string Self() {
  std::array<char, HOST_NAME_MAX + 1> host{};
  if (gethostname(host.data(), host.size() - 1) != 0) return fmt::format("process {}", getpid());
  return fmt::format("process {} on {}", getpid(), host.data());
}

// Whatever it is: for a message.
std::string Holder(int descriptor) {
  std::array<char, 256> text{};
  const ssize_t size = pread(descriptor, text.data(), text.size(), 0);
  std::string holder(text.data(), static_cast<size_t>(std::max<ssize_t>(size, 0)));
  std::erase_if(holder, [](char c) { return c < ' ' || c > '~'; });
  return holder.empty() ? "somebody else" : holder;
}

absl::Status Refused(const std::string& path, int descriptor, int error) {
  switch (error) {
    case EWOULDBLOCK:
      return absl::FailedPreconditionError(fmt::format("{}: held by {}", path, Holder(descriptor)));
    case ENOSYS:
    case ENOLCK:
    case EOPNOTSUPP:
      return Unimplemented("{}: its file system knows no locks", path);
    default:
      return ErrnoError(path, "cannot lock", error);
  }
}

}  // namespace

absl::StatusOr<FileLock> FileLock::Take(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (descriptor < 0) return ErrnoError(path, "cannot open", errno);
  FileLock lock(descriptor);
  if (flock(descriptor, LOCK_EX | LOCK_NB) != 0) return Refused(path, descriptor, errno);
  if (ftruncate(descriptor, 0) != 0) return ErrnoError(path, "cannot write", errno);
  CADRE_RETURN_IF_ERROR(WriteAll(descriptor, path, Self() + "\n"));
  return lock;
}

FileLock::FileLock(FileLock&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}

FileLock& FileLock::operator=(FileLock&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

FileLock::~FileLock() {
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace cadre
