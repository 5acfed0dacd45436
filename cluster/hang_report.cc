#include "cluster/hang_report.h"

#include <algorithm>

#include <fmt/core.h>

#include "cluster/rank_list.h"

namespace cadre {
namespace {

using Ranks = std::vector<RankView>;

bool Unfinished(const OperationRecord& operation) {
  return operation.state == OperationState::kQueued || operation.state == OperationState::kRunning;
}

// The rank's oldest operation that is not finished, of a group or of any.
const OperationRecord* Pending(const RankView& rank, const std::string* group = nullptr) {
  if (!rank.record) return nullptr;
  for (const OperationRecord& operation : rank.record->operations) {
    if (Unfinished(operation) && (group == nullptr || operation.group == *group)) return &operation;
  }
  return nullptr;
}

// The number of the group's newest operation that the rank entered; -1: none that is still known.
int64_t Entered(const RankView& rank, const std::string& group) {
  if (!rank.record) return -1;
  for (auto at = rank.record->operations.rbegin(); at != rank.record->operations.rend(); ++at) {
    if (at->group == group) return at->sequence;
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

// What most likely is waited for: the oldest operation that is not finished, on any rank.
const OperationRecord* OldestPending(const Ranks& ranks) {
  const OperationRecord* oldest = nullptr;
  for (const RankView& rank : ranks) {
    const OperationRecord* pending = Pending(rank);
    if (pending != nullptr && !rank.stopped &&
        (oldest == nullptr || pending->queued_ns < oldest->queued_ns)) {
      oldest = pending;
    }
  }
  return oldest;
}

// A stopped rank; else one that has not entered what the others wait in and, where there are
// several, waits for nobody itself and is furthest behind.
const RankView* FindCulprit(const Ranks& ranks, const OperationRecord* waited) {
  for (const RankView& rank : ranks) {
    if (rank.stopped) return &rank;
  }
  if (waited == nullptr) return nullptr;
  const RankView* culprit = nullptr;
  const auto key = [&](const RankView& rank) {
    return std::tuple(Pending(rank) != nullptr, rank.record.has_value(),
                      rank.record ? rank.record->step : -1, Entered(rank, waited->group));
  };
  // Ranks that never used the group may belong to another one of its name, or to none.
  for (const bool users : {true, false}) {
    for (const RankView& rank : ranks) {
      const int64_t entered = Entered(rank, waited->group);
      if (entered >= static_cast<int64_t>(waited->sequence) || (entered >= 0) != users) continue;
      if (culprit == nullptr || key(rank) < key(*culprit)) culprit = &rank;
    }
    if (culprit != nullptr && Pending(*culprit) == nullptr) return culprit;
  }
  return culprit;
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
  if (const OperationRecord* own = Pending(rank)) {
    where = " in " + Describe(*own);
  } else if (!record.activity.empty()) {
    where = " in " + record.activity;
    if (record.layer >= 0) where += fmt::format(" of layer {}", record.layer);
  }
  if (record.step >= 0) where += fmt::format(" at step {}", record.step);
  return where;
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
    if (Pending(rank) == nullptr) return &rank;
  }
  return nullptr;
}

}  // namespace

std::optional<HangReport> FindHang(const Ranks& ranks, int64_t now_ns, const HangOptions& options) {
  HangReport report;
  report.progress_ns = LastProgress(ranks);
  if (report.progress_ns == 0 || now_ns - report.progress_ns < Bound(ranks, options)) {
    return std::nullopt;
  }
  const OperationRecord* waited = OldestPending(ranks);
  const RankView* culprit = FindCulprit(ranks, waited);
  if (culprit == nullptr && waited == nullptr) {
    if (report.progress_ns > options.others_wait_ns) return std::nullopt;
    culprit = options.others_wait.empty() ? nullptr : WaitsForNobody(ranks);
    if (culprit == nullptr) return std::nullopt;
    report.rank = culprit->rank;
    report.text = fmt::format("{}; {}", Who(*culprit), options.others_wait);
    return report;
  }
  std::vector<int> waiting;
  for (const RankView& rank : ranks) {
    if (&rank != culprit && Pending(rank) != nullptr) waiting.push_back(rank.rank);
  }
  const int64_t since_ns = waited != nullptr ? waited->queued_ns : report.progress_ns;
  const double since = static_cast<double>(now_ns - since_ns) / 1e9;
  if (culprit == nullptr) {
    const bool elsewhere = options.world_size > static_cast<int>(ranks.size());
    report.text = fmt::format("{} wait{} in {} since {:.1f} s", RankList("rank", waiting),
                              waiting.size() == 1 ? "s" : "", Describe(*waited), since);
    if (elsewhere) report.elsewhere = report.text;
    report.text += elsewhere ? "; who holds them up is on another node"
                             : "; all have entered it: the transport does not move";
    return report;
  }
  report.rank = culprit->rank;
  report.text = Who(*culprit);
  if (waiting.empty()) {
    report.text += fmt::format("; nothing moves since {:.1f} s", since);
    return report;
  }
  const OperationRecord* own = Pending(*culprit);
  const bool same = own != nullptr && waited != nullptr && own->group == waited->group &&
                    own->sequence == waited->sequence;
  report.text += fmt::format("; {} wait{} for it{} since {:.1f} s", RankList("rank", waiting),
                             waiting.size() == 1 ? "s" : "",
                             same || waited == nullptr ? "" : " in " + Describe(*waited), since);
  return report;
}

}  // namespace cadre
