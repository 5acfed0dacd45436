#include "cluster/launch_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "core/file.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr char kPrefix[] = "cadre-launch-";

// The folder, locked; -1 where it is not ours, or another one has the lock.
int Lock(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (file < 0) return -1;
  struct stat info;
  if (fstat(file, &info) == 0 && info.st_uid == geteuid() && flock(file, LOCK_EX | LOCK_NB) == 0) {
    return file;
  }
  close(file);
  return -1;
}

void RemoveStale(const std::string& parent) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
    if (!entry.path().filename().string().starts_with(kPrefix)) continue;
    const int lock = Lock(entry.path().string());
    if (lock < 0) continue;
    std::error_code ignored;
    fs::remove_all(entry.path(), ignored);
    close(lock);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<LaunchFolder>> LaunchFolder::Create(
    const std::vector<std::string>& parents) {
  int error = ENOENT;
  for (const std::string& parent : parents) {
    if (parent.empty()) continue;
    RemoveStale(parent);
    // Another launcher may take it for a stale one before it is locked.
    for (int attempt = 0; attempt < 10; ++attempt) {
      std::string path = parent + "/" + kPrefix + "XXXXXX";
      if (mkdtemp(path.data()) == nullptr) {
        error = errno;
        break;
      }
      const int lock = Lock(path);
      if (lock < 0) continue;
      if (access(path.c_str(), F_OK) != 0) {
        close(lock);
        continue;
      }
      std::unique_ptr<LaunchFolder> folder(new LaunchFolder);
      folder->path_ = path;
      folder->lock_ = lock;
      return folder;
    }
  }
  return ErrnoError("/dev/shm, TMPDIR and /tmp", "cannot create a folder", error);
}

LaunchFolder::~LaunchFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  close(lock_);
}

}  // namespace cadre
