// "did you mean": names near one that was mistyped. Callable from any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// Up to three of `names` within a few typing errors of `name` or that it is a part of, nearest
// first.
std::vector<std::string> NearNames(std::string_view name, const std::vector<std::string>& names);

// "did you mean a, b?"; "" where none is near.
std::string DidYouMean(std::string_view name, const std::vector<std::string>& names);

}  // namespace cadre
