#include "parallel/zigzag.h"

#include "core/status.h"

namespace cadre {

std::vector<int32_t> ZigzagTokens(std::span<const int32_t> row_offsets, int ranks, int rank) {
  CADRE_CHECK(ranks >= 1 && rank >= 0 && rank < ranks && !row_offsets.empty(), "rank {} of {}",
              rank, ranks);
  std::vector<int32_t> tokens;
  for (size_t row = 0; row + 1 < row_offsets.size(); ++row) {
    const int32_t begin = row_offsets[row], length = row_offsets[row + 1] - begin;
    CADRE_CHECK(length >= 0 && length % (2 * ranks) == 0, "a row of {} tokens over {} ranks",
                length, ranks);
    const int32_t chunk = length / (2 * ranks);
    for (const int32_t c : {rank, 2 * ranks - 1 - rank}) {
      for (int32_t i = 0; i < chunk; ++i) tokens.push_back(begin + c * chunk + i);
    }
  }
  return tokens;
}

}  // namespace cadre
