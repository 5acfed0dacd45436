// The group that ranks save, load and meet in: there they wait for one another's disks, which may
// take long without anything being wrong.
#pragma once

#include <chrono>

namespace cadre {

inline constexpr char kCheckpointGroup[] = "checkpoint";
inline constexpr std::chrono::hours kCheckpointTimeout{24};

}  // namespace cadre
