// A rank ends with the launcher that started it.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace cadre {

// From now on this process gets SIGTERM, once, when its parent dies, and SIGKILL some seconds later
// where it still runs then; until that, writing to the parent's pipes fails but ends nothing.
// Called once, early, by a rank; `launcher` is what its parent must be.
// kUnavailable: the launcher is gone already.
absl::Status FollowLauncher(int64_t launcher);

}  // namespace cadre
