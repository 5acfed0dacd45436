// Files that hold secrets.
#pragma once

#include <string>

#include "core/status.h"

namespace cadre {

// kPermissionDenied where others than the owner and its group may read the file, or others than the
// owner write it; kNotFound and the like where it cannot be looked at.
absl::Status CheckPrivateFile(const std::string& path);

}  // namespace cadre
