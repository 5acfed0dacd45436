// Which tokens each context-parallel rank has. Every row of a batch is cut into 2 n equal chunks
// for n ranks, of which rank r has chunks r and 2 n - 1 - r (Dubey et al., "The Llama 3 Herd of
// Models", 2024, section 3.3.2). A token attends to what stands before it in its document, so an
// early chunk costs little and a late one much; each rank has one of either.
//
//   a row over 3 ranks    | 0 | 1 | 2 | 2 | 1 | 0 |
//
// A rank keeps its tokens in the batch's order. Pure functions, callable from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cadre {

// The tokens of `rank`, ascending. row_offsets [rows + 1]: the first token of each row, then their
// count; a row that 2 * ranks does not divide is a broken invariant.
std::vector<int32_t> ZigzagTokens(std::span<const int32_t> row_offsets, int ranks, int rank);

}  // namespace cadre
