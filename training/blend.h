// Blend: which source sample i of a weighted mix comes from, and how many of that source's samples
// came before it. Both are pure functions of (weights, seed, i), found in O(log i) without a table,
// so a run resumes anywhere at once.
//
// Sample i takes the point (B + i·A) mod 2^64, A being 2^64 over the golden ratio, and the source
// whose share of [0, 2^64) holds it. Such points are spread so evenly (Kronecker sequence) that
// every stretch of samples keeps the shares to within a few samples. How many earlier points fell
// into a share is a sum of floors of a linear function, computed as in Euclid's algorithm.
#pragma once

#include <cstdint>
#include <vector>

#include "core/status.h"

namespace cadre {

class Blend {
 public:
  struct Pick {
    int source = 0;
    int64_t row = 0;  // samples of that source before this one
  };

  // kInvalidArgument: no weights, a negative or non-finite one, or all zero.
  static absl::StatusOr<Blend> Create(const std::vector<double>& weights, uint64_t seed);

  Pick At(int64_t sample) const;

 private:
  Blend() = default;
  int64_t CountBelow(int64_t samples, unsigned __int128 bound) const;

  std::vector<unsigned __int128> bounds_;  // one more than sources, from 0 to 2^64
  uint64_t start_ = 0;
};

}  // namespace cadre
