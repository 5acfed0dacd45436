// Who holds up a job in which nothing moves: a pure function of what its ranks recorded.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "parallel/flight_recorder.h"

namespace cadre {

// One rank as its launcher sees it.
struct RankView {
  int rank = 0;
  bool stopped = false;                  // by a signal or a debugger
  bool ended = false;                    // its process has, well or not
  std::optional<FlightSnapshot> record;  // none: it has not recorded anything yet
};

struct HangOptions {
  double median_steps = 3;
  int64_t least_ns = 2'000'000'000;
  int64_t startup_ns = 120'000'000'000;  // before any step is done
  int64_t disk_ns = 600'000'000'000;     // where ranks wait for one another's disks
  int world_size = 0;                    // more than the views: other nodes have ranks, too
  std::string others_wait;               // what another node says that its ranks wait in, if any,
  int64_t others_wait_ns = 0;            // and when: it is over if something moved here since
};

struct HangReport {
  int rank = -1;            // who; -1: on another node, or nobody is behind
  int64_t progress_ns = 0;  // when anything last moved: tells one hang from the next
  std::string text;         // one line
  std::string elsewhere;  // what the ranks here wait in, where who holds them up is not among them
};

// Where ranks of another node wait, the one here that waits for nobody is it.
// Nothing where something moved within max(median_steps x the median step, least_ns), or nobody
// waits for anybody. Disks are slow without anything being wrong: a wait in the group of
// checkpoints is no hang for disk_ns, unless a rank is stopped.
std::optional<HangReport> FindHang(const std::vector<RankView>& ranks, int64_t now_ns,
                                   const HangOptions& options);

}  // namespace cadre
