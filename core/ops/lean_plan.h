// Which worker computes which key tiles of attention (Sanovar et al., "Lean Attention:
// Hardware-Aware Scalable Attention Mechanism for the Decode-Phase of Transformers", 2024): the
// tiles of all outputs are laid on one line, output after output, and the line is cut evenly, so a
// long context does not keep one worker busy while others have none. An output is the rows of one
// (sequence, KV head, block of rows).
//
// The arithmetic stays canonical (core/ops/attention.h): the piece that begins an output folds its
// tiles as they come; pieces that continue one keep each tile's partials, and whoever finishes an
// output's last piece folds them, left to right. So the plan changes no bit.
//
// Plain data; no shape or address of a device is in it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace cadre::ops {

// A run of one output's tiles in the hands of one worker.
struct LeanPiece {
  int64_t output = 0;
  int64_t begin = 0, end = 0;  // tiles, counted from the output's first one
  int64_t shared = -1;         // place in LeanPlan::shared; -1: the output is done with this piece
  int64_t kept = -1;  // where the partials of tile `begin` are kept; -1: folded as they come
};

// An output in several pieces, or one that the window does not complete.
struct LeanShared {
  int64_t output = 0;
  int64_t pieces = 0;
  int64_t begin = 0, end = 0;  // tiles whose partials are kept
  int64_t kept = 0;            // where those of tile `begin` are
  bool complete = false;       // its last tile lies in the window
};

struct LeanPlan {
  std::vector<LeanPiece> pieces;     // along the line
  std::vector<int64_t> first_piece;  // [workers + 1]
  std::vector<LeanShared> shared;
  int64_t kept = 0;  // tiles whose partials are kept

  int64_t workers() const { return static_cast<int64_t>(first_piece.size()) - 1; }
  std::span<const LeanPiece> PiecesOf(int64_t worker) const {
    return std::span(pieces).subspan(first_piece[worker],
                                     first_piece[worker + 1] - first_piece[worker]);
  }
};

// Part of the line: it bounds what is kept at a time. The window after this one begins in the
// middle of an output where this one ends there.
struct LeanWindow {
  int64_t begin = 0, end = 0;  // tiles of the line
  int64_t first_output = 0;    // the one that tile `begin` belongs to
  int64_t first_tile = 0;      // and which of its tiles that is
};

// tiles[o]: those of output o, none negative; an output without tiles is in exactly one piece all
// the same. The counts of two workers' tiles differ by at most 1. workers >= 1.
LeanPlan MakeLeanPlan(std::span<const int64_t> tiles, int64_t workers);
LeanPlan MakeLeanPlan(std::span<const int64_t> tiles, int64_t workers, const LeanWindow& window);

// Cuts the line into windows, in order, that each keep at most `limit` partials: one where that is
// enough. limit >= workers.
std::vector<LeanPlan> MakeLeanPlans(std::span<const int64_t> tiles, int64_t workers, int64_t limit);

}  // namespace cadre::ops
