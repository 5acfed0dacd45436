#include "serving/http/private_file.h"

#include <sys/stat.h>

#include <cerrno>

#include "core/file.h"

namespace cadre {

absl::Status CheckPrivateFile(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) return ErrnoError(path, "cannot read", errno);
  if ((info.st_mode & (S_IWGRP | S_IRWXO)) == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(
      fmt::format("{}: its mode is {:03o}, so others could read or change it; 640, 600 or less is "
                  "allowed",
                  path, info.st_mode & 0777));
}

}  // namespace cadre
