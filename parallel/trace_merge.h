// Merges the traces that the ranks of a run wrote into one, on one timeline.
//
//   CADRE_ASSIGN_OR_RETURN(const MergedTrace merged, MergeTraces(parts, "trace.json"));
//   std::fputs(ToTable(merged.totals).c_str(), stderr);
//
// The merged trace has one process for each rank, named by its place in the layout, with a row for
// what its threads computed, one for what they waited for, and rows for the collectives of each
// group by label, from their start to their landing. Each collective says how long of that its rank
// computed (hidden) and how long it waited. Parts may be cut short, as a killed rank leaves them.
//
// One thread. Parts may be hostile: lines are bounded and every field is checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

// Nanoseconds, begin <= end.
struct TimeSpan {
  int64_t begin = 0;
  int64_t end = 0;
};

// The same moments in rising order, none twice.
std::vector<TimeSpan> UnionOf(std::vector<TimeSpan> spans);
// How long of `span` lies in `spans`, which UnionOf made.
int64_t CoveredTime(const TimeSpan& span, const std::vector<TimeSpan>& spans);

// All collectives of one group and label, over all ranks.
struct CollectiveTotals {
  std::string group;
  std::string label;
  int64_t operations = 0;
  int64_t bytes = 0;
  int64_t flight_ns = 0;  // from start to landing
  int64_t hidden_ns = 0;  // of it, while the rank did not wait
};

struct MergedTrace {
  std::vector<int> ranks;                // whose parts it has, rising
  std::vector<CollectiveTotals> totals;  // by group, then label
};

// kInvalidArgument: parts of different runs, or two of one rank; kDataLoss: not a rank's trace.
absl::StatusOr<MergedTrace> MergeTraces(const std::vector<std::string>& parts,
                                        const std::string& output);

// Whose part a file is, and of which run.
struct TracePartName {
  int rank = -1;
  std::string run;
};
absl::StatusOr<TracePartName> ReadTracePartName(const std::string& path);

// A line for each that moved bytes, under a heading; those of checkpoints as one.
std::string ToTable(const std::vector<CollectiveTotals>& totals);

}  // namespace cadre
