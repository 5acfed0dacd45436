#include "parallel/collectives.h"

#include <gtest/gtest.h>

namespace cadre {
namespace {

// An all-reduce scatters and gathers each segment.
int64_t Pieces(int n, size_t width, int64_t part) {
  const int64_t numel = SegmentNumel(n, width, part);
  return 2 * ((part + numel - 1) / numel);
}

TEST(Collectives, NoReductionHasMorePiecesThanCanBeToldApart) {
  const int64_t usual = SegmentNumel(2, 4, 1);
  EXPECT_EQ(SegmentNumel(2, 4, kMaxPieces / 2 * usual), usual);
  EXPECT_EQ(SegmentNumel(2, 4, kMaxPieces / 2 * usual + 1), 2 * usual);
  for (const int n : {2, 8, 4096}) {
    for (const int64_t part : {int64_t{1}, int64_t{1} << 31, int64_t{1} << 40}) {
      EXPECT_LE(Pieces(n, 4, part), kMaxPieces) << n << " ranks, " << part;
    }
  }
}

}  // namespace
}  // namespace cadre
