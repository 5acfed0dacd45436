// Numbers of things, for messages.
#pragma once

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace cadre {

// "1 rank", "2 ranks", with "es" "2 microbatches".
inline std::string Counted(int64_t count, std::string_view noun, std::string_view ending = "s") {
  return fmt::format("{} {}{}", count, noun, count == 1 ? "" : ending);
}

}  // namespace cadre
