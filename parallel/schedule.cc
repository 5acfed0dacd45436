#include "parallel/schedule.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <span>

#include "core/counted.h"
#include "parallel/schedule_orders.h"
#include "parallel/schedule_passes.h"
#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

// Bounds of one schedule, 16 bytes an action: the fields of Action hold its stages, and a wrong
// flag does not fill the memory.
constexpr int kMaxStages = 4096;
constexpr int kMaxStageMicrobatches = 1 << 20;

int StageItself(const ScheduleSpec& spec, int stage) { return stage % spec.ranks; }
int StageInV(const ScheduleSpec& spec, int stage) {
  return stage < spec.ranks ? stage : 2 * spec.ranks - 1 - stage;
}

// The nearest count that a generator takes; `microbatches` itself where it takes that.
int AnyCount(const ScheduleSpec& spec) { return std::max(spec.microbatches, 1); }
int MultipleOfRanks(const ScheduleSpec& spec) {
  const int groups = (spec.microbatches + spec.ranks / 2) / spec.ranks;
  return std::max(groups, 1) * spec.ranks;
}

int GPipeInFlight(const ScheduleSpec& spec, int) { return spec.microbatches; }
int OneForwardOneBackwardInFlight(const ScheduleSpec& spec, int rank) {
  return std::min(spec.microbatches, spec.ranks - rank);
}
int InterleavedInFlight(const ScheduleSpec& spec, int rank) {
  const int p = spec.ranks, v = spec.stages_per_rank;
  return std::min(spec.microbatches * v, 2 * (p - rank - 1) + (v - 1) * p + 1);
}
int ZeroBubbleH1InFlight(const ScheduleSpec& spec, int) {
  return std::min(spec.microbatches, spec.ranks);
}
int ZeroBubbleVInFlight(const ScheduleSpec& spec, int) {
  return 2 * std::min(spec.microbatches, spec.ranks);
}

struct Generator {
  config::PipelineSchedule kind;
  std::string_view name;
  int least_stages_per_rank;
  int most_stages_per_rank;
  std::string_view takes;  // microbatches
  int (*nearest)(const ScheduleSpec& spec);
  int (*rank_of)(const ScheduleSpec& spec, int stage);
  std::vector<Action> (*order)(const ScheduleSpec& spec, int rank);
  int (*in_flight)(const ScheduleSpec& spec, int rank);
};

std::span<const Generator> Generators() {
  static constexpr Generator kGenerators[] = {
      {config::PIPELINE_SCHEDULE_GPIPE, "gpipe", 1, 1, "any", AnyCount, StageItself, GPipeOrder,
       GPipeInFlight},
      {config::PIPELINE_SCHEDULE_1F1B, "1f1b", 1, 1, "any", AnyCount, StageItself,
       OneForwardOneBackwardOrder, OneForwardOneBackwardInFlight},
      {config::PIPELINE_SCHEDULE_INTERLEAVED_1F1B, "interleaved_1f1b", 2, kMaxStages,
       "multiples of the pipeline's ranks", MultipleOfRanks, StageItself, InterleavedOrder,
       InterleavedInFlight},
      {config::PIPELINE_SCHEDULE_ZB_H1, "zb_h1", 1, 1, "any", AnyCount, StageItself,
       ZeroBubbleH1Order, ZeroBubbleH1InFlight},
      {config::PIPELINE_SCHEDULE_ZB_V, "zb_v", 2, 2, "any", AnyCount, StageInV, ZeroBubbleVOrder,
       ZeroBubbleVInFlight},
  };
  return kGenerators;
}

const Generator& GeneratorOf(config::PipelineSchedule kind) {
  for (const Generator& generator : Generators()) {
    if (generator.kind == kind) return generator;
  }
  CADRE_CHECK(false, "pipeline schedule {}", static_cast<int>(kind));
}

std::string_view KindName(ActionKind kind) {
  static constexpr std::string_view kNames[] = {"forward",
                                                "backward",
                                                "backward_input",
                                                "backward_weight",
                                                "overlapped_pair",
                                                "send_activation",
                                                "receive_activation",
                                                "send_gradient",
                                                "receive_gradient",
                                                "unshard",
                                                "reshard",
                                                "recompute",
                                                "reduce_gradient",
                                                "optimizer"};
  return kNames[static_cast<size_t>(kind)];
}

}  // namespace

std::string ToString(const Action& a) {
  std::string text(KindName(a.kind));
  if (a.stage >= 0) text += fmt::format(" stage {}", a.stage);
  if (a.microbatch >= 0) text += fmt::format(" microbatch {}", a.microbatch);
  if (a.kind == ActionKind::kOverlappedPair) {
    text += fmt::format(" with stage {} microbatch {}", a.backward_stage, a.backward_microbatch);
  }
  if (a.peer >= 0) {
    const bool send = a.kind == ActionKind::kSendActivation || a.kind == ActionKind::kSendGradient;
    text += fmt::format(" {} rank {}", send ? "to" : "from", a.peer);
  }
  return text;
}

std::string_view Name(config::PipelineSchedule kind) { return GeneratorOf(kind).name; }

absl::StatusOr<config::PipelineSchedule> FindSchedule(std::string_view name) {
  std::vector<std::string_view> names;
  for (const Generator& generator : Generators()) {
    if (generator.name == name) return generator.kind;
    names.push_back(generator.name);
  }
  return InvalidArgument("pipeline schedule \"{}\" is not known; allowed: {}", name,
                         fmt::join(names, ", "));
}

std::vector<config::PipelineSchedule> AllSchedules() {
  std::vector<config::PipelineSchedule> kinds;
  for (const Generator& generator : Generators()) kinds.push_back(generator.kind);
  return kinds;
}

int LeastStagesPerRank(config::PipelineSchedule kind) {
  return GeneratorOf(kind).least_stages_per_rank;
}

absl::Status CheckStages(const ScheduleSpec& spec) {
  const Generator& generator = GeneratorOf(spec.kind);
  if (spec.ranks < 1 || spec.stages_per_rank < 1 ||
      int64_t{spec.ranks} * spec.stages_per_rank > kMaxStages) {
    return InvalidArgument("a pipeline of {} with {} on each; allowed: 1 to {} stages",
                           Counted(spec.ranks, "rank"), Counted(spec.stages_per_rank, "stage"),
                           kMaxStages);
  }
  if (spec.stages_per_rank < generator.least_stages_per_rank ||
      spec.stages_per_rank > generator.most_stages_per_rank) {
    return InvalidArgument(
        "{} on each rank: {} takes {}{}", Counted(spec.stages_per_rank, "stage"), generator.name,
        generator.least_stages_per_rank,
        generator.most_stages_per_rank > generator.least_stages_per_rank ? " or more" : "");
  }
  return absl::OkStatus();
}

absl::Status CheckMicrobatches(const ScheduleSpec& spec) {
  const int most = kMaxStageMicrobatches / spec.stages();
  if (spec.microbatches > most) {
    return InvalidArgument("{} over {}; at most {} are taken",
                           Counted(spec.microbatches, "microbatch", "es"),
                           Counted(spec.stages(), "stage"), most);
  }
  const Generator& generator = GeneratorOf(spec.kind);
  const int nearest = generator.nearest(spec);
  if (nearest == spec.microbatches) return absl::OkStatus();
  return InvalidArgument(
      "{} over {}: {} takes {}; the nearest is {}", Counted(spec.microbatches, "microbatch", "es"),
      Counted(spec.ranks, "pipeline rank"), generator.name, generator.takes, nearest);
}

absl::StatusOr<Schedule> MakeSchedule(const ScheduleSpec& spec) {
  CADRE_RETURN_IF_ERROR(CheckStages(spec));
  CADRE_RETURN_IF_ERROR(CheckMicrobatches(spec));
  std::vector<std::vector<Action>> orders(spec.ranks);
  for (int rank = 0; rank < spec.ranks; ++rank) {
    orders[rank] = GeneratorOf(spec.kind).order(spec, rank);
  }
  return Schedule{spec, AddTransfers(spec, orders)};
}

Schedule MakeForwardSchedule(const ScheduleSpec& spec) {
  std::vector<std::vector<Action>> orders(spec.ranks);
  for (int stage = 0; stage < spec.stages(); ++stage) {
    StageOrder order(&orders[RankOfStage(spec, stage)], stage);
    for (int m = 0; m < spec.microbatches; ++m) order.Forward();
  }
  return Schedule{spec, AddTransfers(spec, orders)};
}

int RankOfStage(const ScheduleSpec& spec, int stage) {
  return GeneratorOf(spec.kind).rank_of(spec, stage);
}

int MostInFlight(const ScheduleSpec& spec, int rank) {
  return GeneratorOf(spec.kind).in_flight(spec, rank);
}

}  // namespace cadre
