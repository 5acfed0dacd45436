// FileLock: one process at a time has a file, whatever becomes of the process: the system takes the
// lock back as it ends, kill -9 included.
//
// flock(2), which Linux carries over NFS, too. Two FileLocks of one process exclude one another as
// those of two do. One thread uses an object at a time.
#pragma once

#include <string>

#include "core/status.h"

namespace cadre {

class FileLock {
 public:
  // Makes the file where there is none and writes into it who has it. Never waits.
  // kFailedPrecondition: somebody else does, "PATH: held by WHO". kUnimplemented: its file system
  // knows no locks.
  static absl::StatusOr<FileLock> Take(const std::string& path);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  explicit FileLock(int descriptor) : descriptor_(descriptor) {}
  int descriptor_ = -1;
};

}  // namespace cadre
