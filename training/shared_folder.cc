#include "training/shared_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <random>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "parallel/agree.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = ".shared-";
constexpr size_t kDigits = 16;

// A name that no file system has remembered the absence of.
std::string FreshName() {
  std::random_device random;
  return fmt::format("{}{:08x}{:08x}", kPrefix, random(), random());
}

bool IsProbe(std::string_view name) {
  if (!name.starts_with(kPrefix) || name.size() != kPrefix.size() + kDigits) return false;
  return std::ranges::all_of(name.substr(kPrefix.size()), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
}

// A file that goes with this object, and is locked while it lives.
class Probe {
 public:
  Probe() = default;
  Probe(Probe&& other) noexcept
      : path_(std::move(other.path_)), file_(std::exchange(other.file_, -1)) {}
  Probe& operator=(Probe&&) = delete;
  ~Probe() {
    if (file_ < 0) return;
    unlink(path_.c_str());
    close(file_);
  }

  static absl::StatusOr<Probe> Create(const std::string& folder);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int file_ = -1;
};

absl::StatusOr<Probe> Probe::Create(const std::string& folder) {
  // Another job may take it for a stale one before it is locked.
  for (int attempt = 0; attempt < 10; ++attempt) {
    Probe probe;
    probe.path_ = folder + "/" + FreshName();
    probe.file_ = open(probe.path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (probe.file_ < 0) return ErrnoError(probe.path_, "cannot create", errno);
    // A file system without locks has none that say what is stale, either.
    if (flock(probe.file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) continue;
    struct stat info;
    if (fstat(probe.file_, &info) == 0 && info.st_nlink > 0) return probe;
  }
  return Unavailable("{}: another process removes what this one writes there", folder);
}

// What ranks that were killed in here left behind; a probe in use is locked.
void RemoveStale(const std::string& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (!IsProbe(entry.path().filename().string())) continue;
    const int file = open(entry.path().c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) continue;
    struct stat info;
    const bool empty = fstat(file, &info) == 0 && S_ISREG(info.st_mode) && info.st_size == 0;
    if (empty && flock(file, LOCK_EX | LOCK_NB) == 0) unlink(entry.path().c_str());
    close(file);
  }
}

}  // namespace

absl::Status CheckSharedFolder(Communicator* group, const std::string& folder) {
  if (group == nullptr) return absl::OkStatus();
  const bool first = GroupRank(group) == 0;
  if (first) RemoveStale(folder);
  const absl::StatusOr<Probe> mine = first ? Probe::Create(folder) : Probe();
  CADRE_RETURN_IF_ERROR(Agree(*group, mine.status(), {"output folder"}));
  CADRE_ASSIGN_OR_RETURN(const auto all, GatherText(*group, mine->path(), {"output folder"}));
  const std::string seen = folder + "/" + fs::path(all[0]).filename().string();
  std::error_code error;
  const absl::Status status =
      fs::exists(seen, error)
          ? absl::OkStatus()
          : InvalidArgument(
                "{}: what rank 0 wrote there is not seen here; all ranks need one shared folder",
                folder);
  return Agree(*group, status, {"output folder"});
}

}  // namespace cadre
