#include "cli/run_trace.h"

#include <chrono>
#include <filesystem>
#include <numeric>
#include <sstream>

#include <spdlog/spdlog.h>

#include "parallel/agree.h"
#include "parallel/clock_offset.h"
#include "parallel/rank_list.h"
#include "parallel/trace_merge.h"

namespace cadre::cli {
namespace {

std::string PartPath(const std::string& path, int rank) {
  return fmt::format("{}.rank{}", path, rank);
}

// "rank 2 (tp 0, dp 1)".
std::string PlaceText(const Layout& layout, int rank) {
  const Coordinates place = CoordinatesOf(layout, rank);
  struct Axis {
    const char* name;
    int size, place;
  };
  std::string text;
  for (const Axis& axis : {Axis{"tp", layout.tp, place.tp}, Axis{"cp", layout.cp, place.cp},
                           Axis{"dp", layout.dp, place.dp}, Axis{"pp", layout.pp, place.pp},
                           Axis{"ep", layout.ep, place.ep}}) {
    if (axis.size > 1)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", axis.name, axis.place);
  }
  return fmt::format("rank {} ({})", rank, text);
}

// Differs between any two runs that write the same file.
std::string NewRunName() {
  return fmt::format("{:x}", std::chrono::system_clock::now().time_since_epoch().count());
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunTrace>> RunTrace::Create(const std::string& path, World* world,
                                                           const Layout& layout) {
  std::unique_ptr<RunTrace> run(new RunTrace(path, world));
  CADRE_ASSIGN_OR_RETURN(run->trace_,
                         Trace::Create(world == nullptr ? path : PartPath(path, world->rank())));
  if (world != nullptr) CADRE_RETURN_IF_ERROR(run->Describe(layout));
  run->trace_->NameThread(kTraceCompute);
  return run;
}

absl::Status RunTrace::Describe(const Layout& layout) {
  std::vector<int> all(static_cast<size_t>(world_->size()));
  std::iota(all.begin(), all.end(), 0);
  group_ = world_->NewGroup("trace", all);
  CADRE_ASSIGN_OR_RETURN(const auto runs, GatherText(*group_, NewRunName(), {"trace"}));
  run_ = runs.front();
  CADRE_ASSIGN_OR_RETURN(const ClockOffset clock,
                         MeasureClockOffset(*group_, world_->local_ranks()));
  trace_->SetRank({.rank = world_->rank(),
                   .name = PlaceText(layout, world_->rank()),
                   .run = run_,
                   .clock_offset_ns = clock.offset_ns,
                   .clock_bound_ns = clock.bound_ns});
  world_->set_trace(trace_.get());
  return absl::OkStatus();
}

RunTrace::~RunTrace() {
  if (world_ != nullptr) world_->set_trace(nullptr);
}

absl::Status RunTrace::Finish(spdlog::logger& log) {
  if (world_ != nullptr) world_->set_trace(nullptr);
  const absl::Status closed = trace_->Close();
  if (world_ == nullptr) return closed;
  CADRE_RETURN_IF_ERROR(AgreeIn(group_.get(), closed, {"trace"}));
  return world_->rank() == 0 ? Merge(log) : absl::OkStatus();
}

absl::Status RunTrace::Merge(spdlog::logger& log) const {
  std::vector<std::string> parts;
  std::vector<int> missing;
  for (int rank = 0; rank < world_->size(); ++rank) {
    const std::string part = PartPath(path_, rank);
    const absl::StatusOr<TracePartName> name = ReadTracePartName(part);
    if (name.ok() && name->rank == rank && name->run == run_) {
      parts.push_back(part);
    } else {
      missing.push_back(rank);
    }
  }
  CADRE_ASSIGN_OR_RETURN(const MergedTrace merged, MergeTraces(parts, path_));
  if (missing.empty()) {
    std::error_code ignored;
    for (const std::string& part : parts) std::filesystem::remove(part, ignored);
    log.info("trace of {} ranks: {}", parts.size(), path_);
  } else {
    log.warn(
        "{} has {} of {} ranks; {} wrote theirs where rank 0 cannot read: bring them together "
        "and call `cadre trace merge`",
        path_, parts.size(), world_->size(), RankList("rank", missing));
  }
  std::istringstream table(ToTable(merged.totals));
  for (std::string line; std::getline(table, line);) log.info("{}", line);
  return absl::OkStatus();
}

}  // namespace cadre::cli
