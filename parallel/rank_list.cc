#include "parallel/rank_list.h"

#include <fmt/core.h>

namespace cadre {

std::string RankList(std::string_view noun, const std::vector<int>& numbers) {
  constexpr int kMaxPieces = 16;
  std::string text = fmt::format("{}{}", noun, numbers.size() == 1 ? "" : "s");
  size_t i = 0;
  for (int piece = 0; i < numbers.size() && piece < kMaxPieces; ++piece) {
    size_t last = i;
    while (last + 1 < numbers.size() && numbers[last + 1] == numbers[last] + 1) ++last;
    if (last < i + 2) last = i;  // two in a row read better apart
    text += fmt::format("{} {}", piece == 0 ? "" : ",", numbers[i]);
    if (last != i) text += fmt::format("-{}", numbers[last]);
    i = last + 1;
  }
  if (i < numbers.size()) text += fmt::format(" and {} more", numbers.size() - i);
  return text;
}

}  // namespace cadre
