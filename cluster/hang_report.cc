#include "cluster/hang_report.h"

#include <algorithm>

#include <fmt/core.h>

#include "parallel/checkpoint_group.h"
#include "parallel/control_group.h"
#include "parallel/rank_list.h"

namespace cadre {
namespace {

using Ranks = std::vector<RankView>;

// Who waits: a rank's computing thread, or one beside it (that writes a checkpoint).
enum class Waiter : uint8_t { kComputing, kBeside };

// The operation that it has waited in longest: what is merely in flight holds nobody up, nor does
// it that nobody asks a server anything.
const OperationRecord* Pending(const RankView& rank, Waiter waiter) {
  if (!rank.record) return nullptr;
  for (const OperationRecord& operation : rank.record->operations) {
    if (operation.group == kControlGroup) continue;
    const bool computing = rank.record->thread == 0 || operation.thread == rank.record->thread;
    if (operation.state == OperationState::kAwaited &&
        computing == (waiter == Waiter::kComputing)) {
      return &operation;
    }
  }
  return nullptr;
}

// The number of the group's newest collective that the rank entered; -1: none that is still known.
int64_t Entered(const RankView& rank, const std::string& group) {
  if (!rank.record) return -1;
  for (auto at = rank.record->operations.rbegin(); at != rank.record->operations.rend(); ++at) {
    if (at->group == group && at->peer < 0) return at->sequence;
  }
  return -1;
}

int64_t LastProgress(const Ranks& ranks) {
  int64_t last = 0;
  for (const RankView& rank : ranks) {
    if (rank.record) last = std::max(last, rank.record->progress_ns);
  }
  return last;
}

int64_t Bound(const Ranks& ranks, const HangOptions& options) {
  std::vector<int64_t> steps;
  for (const RankView& rank : ranks) {
    if (!rank.record) continue;
    steps.insert(steps.end(), rank.record->step_durations_ns.begin(),
                 rank.record->step_durations_ns.end());
  }
  if (steps.empty()) {
    // What is stopped does not start up.
    const bool stopped =
        std::any_of(ranks.begin(), ranks.end(), [](const RankView& rank) { return rank.stopped; });
    return stopped ? options.least_ns : options.startup_ns;
  }
  const auto middle = steps.begin() + static_cast<int64_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end());
  const double several = options.median_steps * static_cast<double>(*middle);
  return several > static_cast<double>(options.least_ns) ? static_cast<int64_t>(several)
                                                         : options.least_ns;
}

// What most likely is waited for: the oldest operation that a rank waits in.
const OperationRecord* OldestPending(const Ranks& ranks, Waiter waiter) {
  const OperationRecord* oldest = nullptr;
  for (const RankView& rank : ranks) {
    const OperationRecord* pending = Pending(rank, waiter);
    if (pending != nullptr && !rank.stopped &&
        (oldest == nullptr || pending->queued_ns < oldest->queued_ns)) {
      oldest = pending;
    }
  }
  return oldest;
}

// One that has not entered a collective that others wait in and, where there are several, waits for
// nobody itself and is furthest behind.
const RankView* FurthestBehind(const Ranks& ranks, const OperationRecord& waited, Waiter waiter) {
  const RankView* behind = nullptr;
  const auto key = [&](const RankView& rank) {
    return std::tuple(Pending(rank, waiter) != nullptr, rank.record.has_value(),
                      rank.record ? rank.record->step : -1, Entered(rank, waited.group));
  };
  // Ranks that never used the group may belong to another one of its name, or to none.
  for (const bool users : {true, false}) {
    for (const RankView& rank : ranks) {
      const int64_t entered = Entered(rank, waited.group);
      if (entered >= static_cast<int64_t>(waited.sequence) || (entered >= 0) != users) continue;
      if (behind == nullptr || key(rank) < key(*behind)) behind = &rank;
    }
    if (behind != nullptr && Pending(*behind, waiter) == nullptr) return behind;
  }
  return behind;
}

const RankView* HoldsUp(const Ranks& ranks, const OperationRecord& waited, Waiter waiter) {
  if (waited.peer < 0) return FurthestBehind(ranks, waited, waiter);
  const auto peer = std::ranges::find(ranks, waited.peer, &RankView::rank);
  return peer == ranks.end() ? nullptr : &*peer;
}

// A stopped rank; else the end of the chain of those that wait for one another. None: it ends on
// another node, or in a circle.
const RankView* FindCulprit(const Ranks& ranks, const OperationRecord* waited, Waiter waiter) {
  for (const RankView& rank : ranks) {
    if (rank.stopped) return &rank;
  }
  const RankView* last = nullptr;
  for (size_t links = 0; waited != nullptr; ++links) {
    const RankView* next = HoldsUp(ranks, *waited, waiter);
    if (links == ranks.size()) return nullptr;
    // Who waits for a peer on another node is held up; who is furthest behind may not be.
    if (next == nullptr) return waited->peer >= 0 ? nullptr : last;
    last = next;
    waited = Pending(*last, waiter);
  }
  return last;
}

std::string Describe(const OperationRecord& operation) {
  return fmt::format("{}{} of group {}", operation.operation,
                     operation.label.empty() ? "" : fmt::format(" '{}'", operation.label),
                     operation.group);
}

// " in forward of layer 3 at step 17"
std::string Where(const RankView& rank) {
  if (!rank.record) return " before it recorded anything";
  const FlightSnapshot& record = *rank.record;
  std::string where;
  const OperationRecord* own = Pending(rank, Waiter::kComputing);
  if (own == nullptr && record.activity.empty()) own = Pending(rank, Waiter::kBeside);
  if (own != nullptr) {
    where = " in " + Describe(*own);
  } else if (!record.activity.empty()) {
    where = " in " + record.activity;
    if (record.layer >= 0) where += fmt::format(" of layer {}", record.layer);
  }
  if (record.step >= 0) where += fmt::format(" at step {}", record.step);
  return where;
}

// A disk is what holds them up, as far as one can see.
bool WaitsForDisk(const Ranks& ranks, const OperationRecord* waited) {
  return waited != nullptr && waited->group == kCheckpointGroup &&
         std::ranges::none_of(ranks, [](const RankView& rank) { return rank.stopped; });
}

// "rank 2 hangs (stopped by a signal) in forward of layer 3 at step 17"
std::string Who(const RankView& rank) {
  return fmt::format("rank {} hangs{}{}", rank.rank,
                     rank.stopped ? " (stopped by a signal)"
                     : rank.ended ? " (its process has ended)"
                                  : "",
                     Where(rank));
}

const RankView* WaitsForNobody(const Ranks& ranks) {
  for (const RankView& rank : ranks) {
    if (Pending(rank, Waiter::kComputing) == nullptr) return &rank;
  }
  return nullptr;
}

struct Waiting {
  const OperationRecord* in = nullptr;  // null: nobody waits
  Waiter waiter = Waiter::kComputing;
  std::vector<int> ranks;  // but for the culprit
  double seconds = 0;
};

std::string Waits(const Waiting& waiting) {
  return fmt::format("{} wait{}", RankList("rank", waiting.ranks),
                     waiting.ranks.size() == 1 ? "s" : "");
}

void BlameNobodyHere(const Waiting& waiting, bool elsewhere, HangReport* report) {
  report->text = fmt::format("{} in {} since {:.1f} s", Waits(waiting), Describe(*waiting.in),
                             waiting.seconds);
  if (elsewhere) report->elsewhere = report->text;
  report->text += elsewhere ? "; who holds them up is on another node"
                            : "; all have entered it: the transport does not move";
}

void Blame(const RankView& culprit, const Waiting& waiting, HangReport* report) {
  report->rank = culprit.rank;
  report->text = Who(culprit);
  if (waiting.ranks.empty()) {
    report->text += fmt::format("; nothing moves since {:.1f} s", waiting.seconds);
    return;
  }
  const OperationRecord *own = Pending(culprit, waiting.waiter), *in = waiting.in;
  const bool same = own != nullptr && in != nullptr && own->group == in->group &&
                    own->sequence == in->sequence && own->peer < 0 && in->peer < 0;
  report->text += fmt::format("; {} for it{} since {:.1f} s", Waits(waiting),
                              same || in == nullptr ? "" : " in " + Describe(*in), waiting.seconds);
}

}  // namespace

std::optional<HangReport> FindHang(const Ranks& ranks, int64_t now_ns, const HangOptions& options) {
  HangReport report;
  report.progress_ns = LastProgress(ranks);
  if (report.progress_ns == 0 || now_ns - report.progress_ns < Bound(ranks, options)) {
    return std::nullopt;
  }
  Waiting waiting{.in = OldestPending(ranks, Waiter::kComputing)};
  if (waiting.in == nullptr) {
    waiting = {.in = OldestPending(ranks, Waiter::kBeside), .waiter = Waiter::kBeside};
  }
  if (WaitsForDisk(ranks, waiting.in) && now_ns - report.progress_ns < options.disk_ns) {
    return std::nullopt;
  }
  const RankView* culprit = FindCulprit(ranks, waiting.in, waiting.waiter);
  if (culprit == nullptr && waiting.in == nullptr) {
    if (report.progress_ns > options.others_wait_ns) return std::nullopt;
    culprit = options.others_wait.empty() ? nullptr : WaitsForNobody(ranks);
    if (culprit == nullptr) return std::nullopt;
    report.rank = culprit->rank;
    report.text = fmt::format("{}; {}", Who(*culprit), options.others_wait);
    return report;
  }
  for (const RankView& rank : ranks) {
    if (&rank == culprit || Pending(rank, waiting.waiter) == nullptr) continue;
    waiting.ranks.push_back(rank.rank);
  }
  const int64_t since_ns = waiting.in != nullptr ? waiting.in->queued_ns : report.progress_ns;
  waiting.seconds = static_cast<double>(now_ns - since_ns) / 1e9;
  if (culprit == nullptr) {
    BlameNobodyHere(waiting, options.world_size > static_cast<int>(ranks.size()), &report);
  } else {
    Blame(*culprit, waiting, &report);
  }
  return report;
}

}  // namespace cadre
