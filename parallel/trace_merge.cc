#include "parallel/trace_merge.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include <absl/strings/numbers.h>

#include "core/file.h"
#include "core/progress.h"
#include "core/trace.h"
#include "parallel/checkpoint_group.h"
#include "parallel/trace_lines.h"

namespace cadre {
namespace {

using Json = nlohmann::json;

// Threads have numbers under 2^22; their waits get rows of their own.
constexpr int64_t kWaitRows = int64_t{1} << 22;
constexpr int kMostRanks = 1 << 20;
// Moments further away than that are no clock's.
constexpr double kMostMicroseconds = 1e14;
constexpr double kMostInteger = 1e17;

struct Part {
  std::string path;
  TraceRank rank;
  int64_t start_ns = 0;       // of its events' time 0, on rank 0's clock
  int64_t compute = -1;       // the thread whose waits count
  std::set<int64_t> waiting;  // threads that waited
  std::vector<TimeSpan> waits;
};

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

int64_t IntegerOf(const Json& object, const char* key, int64_t otherwise = 0) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return otherwise;
  const double value = found->get<double>();
  return std::abs(value) < kMostInteger ? static_cast<int64_t>(value) : otherwise;
}

// Microseconds with a fraction, as nanoseconds.
int64_t NanosecondsOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_number()) return 0;
  const double value = found->get<double>();
  return std::abs(value) < kMostMicroseconds ? std::llround(value * 1000) : 0;
}

double Microseconds(int64_t nanoseconds) { return static_cast<double>(nanoseconds) / 1000; }

Json ArgsOf(const Json& event) {
  const auto found = event.find("args");
  return found != event.end() && found->is_object() ? *found : Json::object();
}

// A hostile part's sums stay where they are.
void AddTo(int64_t value, int64_t* sum) {
  if (__builtin_add_overflow(*sum, value, sum)) *sum = std::numeric_limits<int64_t>::max();
}

bool IsWait(const Json& event) { return TextOf(event, "cat") == kTraceWait; }

absl::Status TakeRank(const std::string& path, const Json& args, Part* part) {
  const int64_t rank = IntegerOf(args, "rank", -1);
  if (rank < 0 || rank >= kMostRanks) return DataLoss("{}: rank {}", path, rank);
  part->rank = {.rank = static_cast<int>(rank),
                .name = TextOf(args, "process"),
                .run = TextOf(args, "run"),
                .clock_offset_ns = IntegerOf(args, "clock_offset_ns"),
                .clock_bound_ns = IntegerOf(args, "clock_bound_ns")};
  int64_t start = 0;
  const std::string text = TextOf(args, "start_ns");
  if (text.size() > 17 || !absl::SimpleAtoi(text, &start)) {
    return DataLoss("{}: start_ns '{}'", path, text.substr(0, 32));
  }
  part->start_ns = start + part->rank.clock_offset_ns;
  return absl::OkStatus();
}

// The first pass: whose it is, when its clock began, who waited when.
absl::StatusOr<Part> Survey(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(TraceLines lines, TraceLines::Open(path));
  Part part{.path = path, .rank = {.rank = -1}};
  std::map<int64_t, std::vector<TimeSpan>> waits;
  Json event;
  while (true) {
    CADRE_ASSIGN_OR_RETURN(const bool more, lines.Next(&event));
    if (!more) break;
    const std::string name = TextOf(event, "name");
    if (name == kTraceRank) CADRE_RETURN_IF_ERROR(TakeRank(path, ArgsOf(event), &part));
    if (name == "thread_name" && TextOf(ArgsOf(event), "name") == kTraceCompute) {
      part.compute = IntegerOf(event, "tid");
    }
    if (!IsWait(event)) continue;
    const int64_t begin = NanosecondsOf(event, "ts");
    waits[IntegerOf(event, "tid")].push_back(
        {begin, begin + std::max<int64_t>(0, NanosecondsOf(event, "dur"))});
  }
  if (part.rank.rank < 0) return DataLoss("{}: not the trace of a rank", path);
  for (auto& [thread, spans] : waits) {
    part.waiting.insert(thread);
    if (thread == part.compute) part.waits = UnionOf(std::move(spans));
  }
  return part;
}

class Merger {
 public:
  Merger(AtomicFileWriter writer, int64_t start) : writer_(std::move(writer)), start_(start) {}

  absl::Status Add(const Part& part) {
    CADRE_RETURN_IF_ERROR(Name(part));
    CADRE_ASSIGN_OR_RETURN(TraceLines lines, TraceLines::Open(part.path));
    Json event;
    while (true) {
      CADRE_ASSIGN_OR_RETURN(const bool more, lines.Next(&event));
      if (!more) return absl::OkStatus();
      if (TextOf(event, "name") == kTraceRank) continue;
      CADRE_RETURN_IF_ERROR(Write(Placed(part, std::move(event))));
    }
  }

  absl::Status Finish() {
    CADRE_RETURN_IF_ERROR(writer_.Append(std::string_view(first_ ? "[]\n" : "\n]\n")));
    return writer_.Commit();
  }

  std::vector<CollectiveTotals> TakeTotals() {
    std::vector<CollectiveTotals> totals;
    for (auto& [key, total] : totals_) totals.push_back(std::move(total));
    return totals;
  }

 private:
  absl::Status Write(const Json& event) {
    std::string text = first_ ? "[\n" : ",\n";
    first_ = false;
    text += event.dump(-1, ' ', false, Json::error_handler_t::replace);
    return writer_.Append(text);
  }

  absl::Status Meta(const Part& part, const char* name, int64_t thread, Json args) {
    return Write({{"ph", "M"},
                  {"name", name},
                  {"pid", part.rank.rank},
                  {"tid", thread},
                  {"ts", 0},
                  {"args", std::move(args)}});
  }

  absl::Status Name(const Part& part) {
    const TraceRank& rank = part.rank;
    CADRE_RETURN_IF_ERROR(Meta(part, "process_name", 0, {{"name", rank.name}}));
    CADRE_RETURN_IF_ERROR(Meta(part, "process_sort_index", 0, {{"sort_index", rank.rank}}));
    CADRE_RETURN_IF_ERROR(Meta(part, "process_labels", 0,
                               {{"labels", fmt::format("clock within {:.1f} us of rank 0's",
                                                       Microseconds(rank.clock_bound_ns))},
                                {"clock_offset_ns", rank.clock_offset_ns},
                                {"clock_bound_ns", rank.clock_bound_ns}}));
    for (const int64_t thread : part.waiting) {
      const char* name = thread == part.compute ? "waits" : "waits of another thread";
      CADRE_RETURN_IF_ERROR(Meta(part, "thread_name", thread + kWaitRows, {{"name", name}}));
    }
    return absl::OkStatus();
  }

  Json Placed(const Part& part, Json event) {
    event["pid"] = part.rank.rank;
    const int64_t local = NanosecondsOf(event, "ts");
    if (TextOf(event, "ph") != "M") {
      event["ts"] = Microseconds(local + part.start_ns - start_);
    }
    if (IsWait(event)) event["tid"] = IntegerOf(event, "tid") + kWaitRows;
    if (event.contains("id")) {
      event["id"] = fmt::format("{}.{}", part.rank.rank, IntegerOf(event, "id"));
    }
    if (TextOf(event, "cat") == kTraceCollective && TextOf(event, "ph") == "b") {
      Account(part, local, &event);
    }
    return event;
  }

  // How much of a collective its rank computed beside.
  void Account(const Part& part, int64_t begin, Json* event) {
    if (!event->contains("args") || !(*event)["args"].is_object())
      (*event)["args"] = Json::object();
    Json& args = (*event)["args"];
    const int64_t flight = std::max<int64_t>(0, NanosecondsOf(args, "in_flight_us"));
    const int64_t waited = CoveredTime({begin, begin + flight}, part.waits);
    args["waited_us"] = Microseconds(waited);
    args["hidden_us"] = Microseconds(flight - waited);
    args["hidden"] =
        flight == 0 ? 0.0 : static_cast<double>(flight - waited) / static_cast<double>(flight);
    const std::pair<std::string, std::string> key = {TextOf(args, "group"), TextOf(args, "label")};
    CollectiveTotals& total = totals_[key];
    total.group = key.first;
    total.label = key.second;
    ++total.operations;
    AddTo(std::max<int64_t>(0, IntegerOf(args, "bytes")), &total.bytes);
    AddTo(flight, &total.flight_ns);
    AddTo(flight - waited, &total.hidden_ns);
  }

  AtomicFileWriter writer_;
  const int64_t start_;  // time 0 of the merged trace, on rank 0's clock
  std::map<std::pair<std::string, std::string>, CollectiveTotals> totals_;
  bool first_ = true;
};

void Add(const CollectiveTotals& from, CollectiveTotals* to) {
  AddTo(from.operations, &to->operations);
  AddTo(from.bytes, &to->bytes);
  AddTo(from.flight_ns, &to->flight_ns);
  AddTo(from.hidden_ns, &to->hidden_ns);
}

}  // namespace

std::vector<TimeSpan> UnionOf(std::vector<TimeSpan> spans) {
  std::ranges::sort(spans, {}, &TimeSpan::begin);
  std::vector<TimeSpan> joined;
  for (const TimeSpan& span : spans) {
    if (span.end <= span.begin) continue;
    if (joined.empty() || span.begin > joined.back().end) {
      joined.push_back(span);
    } else {
      joined.back().end = std::max(joined.back().end, span.end);
    }
  }
  return joined;
}

int64_t CoveredTime(const TimeSpan& span, const std::vector<TimeSpan>& spans) {
  int64_t covered = 0;
  auto it = std::ranges::upper_bound(spans, span.begin, {}, &TimeSpan::end);
  for (; it != spans.end() && it->begin < span.end; ++it) {
    covered += std::min(it->end, span.end) - std::max(it->begin, span.begin);
  }
  return covered;
}

absl::StatusOr<MergedTrace> MergeTraces(const std::vector<std::string>& paths,
                                        const std::string& output) {
  if (paths.empty()) return InvalidArgument("no traces to merge");
  std::map<int, Part> parts;
  for (const std::string& path : paths) {
    CADRE_ASSIGN_OR_RETURN(Part part, Survey(path));
    const int rank = part.rank.rank;
    if (!parts.empty() && parts.begin()->second.rank.run != part.rank.run) {
      return InvalidArgument("{} and {} are of different runs", parts.begin()->second.path, path);
    }
    const auto [other, fresh] = parts.try_emplace(rank, std::move(part));
    if (!fresh) {
      return InvalidArgument("{} and {} are both of rank {}", other->second.path, path, rank);
    }
  }
  int64_t start = parts.begin()->second.start_ns;
  for (const auto& [rank, part] : parts) start = std::min(start, part.start_ns);
  CADRE_ASSIGN_OR_RETURN(AtomicFileWriter writer, AtomicFileWriter::Create(output));
  Merger merger(std::move(writer), start);
  MergedTrace merged;
  for (const auto& [rank, part] : parts) {
    CADRE_RETURN_IF_ERROR(merger.Add(part));
    merged.ranks.push_back(rank);
  }
  CADRE_RETURN_IF_ERROR(merger.Finish());
  merged.totals = merger.TakeTotals();
  return merged;
}

absl::StatusOr<TracePartName> ReadTracePartName(const std::string& path) {
  CADRE_ASSIGN_OR_RETURN(TraceLines lines, TraceLines::Open(path));
  Json event;
  // A rank says who it is before anything else.
  CADRE_ASSIGN_OR_RETURN(const bool more, lines.Next(&event));
  Part part;
  if (!more || TextOf(event, "name") != kTraceRank) {
    return DataLoss("{}: not the trace of a rank", path);
  }
  CADRE_RETURN_IF_ERROR(TakeRank(path, ArgsOf(event), &part));
  return TracePartName{.rank = part.rank.rank, .run = part.rank.run};
}

std::string ToTable(const std::vector<CollectiveTotals>& totals) {
  std::vector<CollectiveTotals> rows;
  CollectiveTotals checkpoint = {.group = kCheckpointGroup, .label = "all"};
  for (const CollectiveTotals& total : totals) {
    // A checkpoint's many small exchanges are the program's own affair.
    if (total.group == kCheckpointGroup) {
      Add(total, &checkpoint);
    } else if (total.bytes > 0) {
      rows.push_back(total);
    }
  }
  if (checkpoint.bytes > 0) rows.push_back(checkpoint);
  size_t group = std::string_view("group").size(), label = std::string_view("label").size();
  for (const CollectiveTotals& row : rows) {
    group = std::max(group, row.group.size());
    label = std::max(label, row.label.size());
  }
  std::string table = fmt::format("{:<{}}  {:<{}}  {:>10} {:>10} {:>12} {:>7}\n", "group", group,
                                  "label", label, "operations", "bytes", "in flight", "hidden");
  for (const CollectiveTotals& row : rows) {
    const double share = row.flight_ns == 0 ? 0.0
                                            : 100 * static_cast<double>(row.hidden_ns) /
                                                  static_cast<double>(row.flight_ns);
    table += fmt::format("{:<{}}  {:<{}}  {:>10} {:>10} {:>10.3f} s {:>5.0f} %\n", row.group, group,
                         row.label, label, row.operations, FormatBytes(row.bytes),
                         static_cast<double>(row.flight_ns) * 1e-9, share);
  }
  return table;
}

}  // namespace cadre
