// Lists of ranks in messages.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// "rank 3", "ranks 3, 5", "ranks 0-7, 9"; long ones are cut: "ranks 0, 2, 4 and 997 more".
// `numbers` ascend.
std::string RankList(std::string_view noun, const std::vector<int>& numbers);

}  // namespace cadre
