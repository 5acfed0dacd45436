// How a flat bucket is cut over the ranks of a group: contiguous shards, as even as cache lines
// allow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/parameters.h"

namespace cadre {

// Part `rank` of `numel` elements over n ranks. Parts start at multiples of 64 elements; the last
// ones may be shorter or empty.
inline Shard ShardOf(int64_t numel, int n, int rank) {
  constexpr int64_t kAlign = 64;
  const int64_t each = ((numel + n - 1) / n + kAlign - 1) / kAlign * kAlign;
  const int64_t begin = std::min(numel, each * rank);
  return {begin, std::min(each, numel - begin)};
}

// The shards' sizes by rank, as the collectives take them.
inline std::vector<int64_t> ShardSizes(int64_t numel, int n) {
  std::vector<int64_t> sizes;
  for (int rank = 0; rank < n; ++rank) sizes.push_back(ShardOf(numel, n, rank).numel);
  return sizes;
}

}  // namespace cadre
