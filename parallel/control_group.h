// The group in which the ranks of a server hear what rank 0 does next: they wait there for as long
// as nobody asks anything, and nothing is wrong then.
#pragma once

#include <chrono>

namespace cadre {

inline constexpr char kControlGroup[] = "control";
inline constexpr std::chrono::hours kControlTimeout{24 * 365};

}  // namespace cadre
