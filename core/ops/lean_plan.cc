#include "core/ops/lean_plan.h"

#include <algorithm>
#include <numeric>

#include "core/status.h"

namespace cadre::ops {
namespace {

// Lays the pieces of one output after another along the line.
class Line {
 public:
  Line(int64_t workers, const LeanWindow& window)
      : workers_(workers), window_(window), at_(window.begin) {
    plan_.first_piece.push_back(0);
  }

  // Tiles [done, total) of `output`, as far as the window goes.
  void Lay(int64_t output, int64_t done, int64_t total) {
    const size_t first = plan_.pieces.size();
    do {
      while (worker_ + 1 < workers_ && at_ >= EndOf(worker_)) NextWorker();
      const int64_t count = std::min(total - done, EndOf(worker_) - at_);
      plan_.pieces.push_back({.output = output, .begin = done, .end = done + count});
      done += count;
      at_ += count;
    } while (done < total && at_ < window_.end);
    if (plan_.pieces.size() - first > 1 || done < total) Share(first, done == total);
  }

  LeanPlan Take() {
    while (worker_ < workers_) NextWorker();
    return std::move(plan_);
  }

 private:
  int64_t EndOf(int64_t worker) const {
    return window_.begin + (window_.end - window_.begin) * (worker + 1) / workers_;
  }

  void NextWorker() {
    ++worker_;
    plan_.first_piece.push_back(static_cast<int64_t>(plan_.pieces.size()));
  }

  void Share(size_t first, bool complete) {
    const std::span pieces = std::span(plan_.pieces).subspan(first);
    LeanShared shared{.output = pieces.front().output,
                      .pieces = static_cast<int64_t>(pieces.size()),
                      .begin = pieces.front().end,
                      .end = pieces.back().end,
                      .kept = plan_.kept,
                      .complete = complete};
    for (LeanPiece& piece : pieces) {
      piece.shared = static_cast<int64_t>(plan_.shared.size());
      if (&piece == &pieces.front()) continue;
      piece.kept = plan_.kept;
      plan_.kept += piece.end - piece.begin;
    }
    plan_.shared.push_back(shared);
  }

  const int64_t workers_;
  const LeanWindow window_;
  LeanPlan plan_;
  int64_t worker_ = 0, at_;
};

int64_t Total(std::span<const int64_t> tiles) {
  return std::accumulate(tiles.begin(), tiles.end(), int64_t{0});
}

}  // namespace

LeanPlan MakeLeanPlan(std::span<const int64_t> tiles, int64_t workers) {
  return MakeLeanPlan(tiles, workers, {.begin = 0, .end = Total(tiles)});
}

LeanPlan MakeLeanPlan(std::span<const int64_t> tiles, int64_t workers, const LeanWindow& window) {
  CADRE_CHECK(workers >= 1, "lean plan: {} workers", workers);
  Line line(workers, window);
  int64_t done = window.first_tile, at = window.begin;
  for (size_t o = static_cast<size_t>(window.first_output); o < tiles.size(); ++o, done = 0) {
    // What has no tiles and lies at the window's end belongs to it, too: no later one would have
    // it.
    if (at > window.end || (at == window.end && tiles[o] > 0)) break;
    line.Lay(static_cast<int64_t>(o), done, tiles[o]);
    at += tiles[o] - done;
  }
  return line.Take();
}

std::vector<LeanPlan> MakeLeanPlans(std::span<const int64_t> tiles, int64_t workers,
                                    int64_t limit) {
  CADRE_CHECK(limit >= workers, "lean plan: {} partials for {} workers", limit, workers);
  std::vector<LeanPlan> plans;
  plans.push_back(MakeLeanPlan(tiles, workers));
  if (plans.front().kept <= limit) return plans;
  plans.clear();
  const int64_t total = Total(tiles), step = limit / workers * workers;
  LeanWindow window;
  while (window.begin < total) {
    window.end = std::min(total, window.begin + step);
    plans.push_back(MakeLeanPlan(tiles, workers, window));
    const LeanPiece& last = plans.back().pieces.back();
    const bool done = last.end == tiles[last.output];
    window = {.begin = window.end,
              .first_output = last.output + (done ? 1 : 0),
              .first_tile = done ? 0 : last.end};
  }
  return plans;
}

}  // namespace cadre::ops
