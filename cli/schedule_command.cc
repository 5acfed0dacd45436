#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/file.h"
#include "core/status.h"
#include "parallel/schedule.h"
#include "parallel/schedule_draw.h"
#include "parallel/schedule_simulate.h"

namespace cadre::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ScheduleFlags {
  std::string schedule = "1f1b";
  int ranks = 4;
  int microbatches = 8;
  int stages_per_rank = 0;
  bool recompute = false;
  std::optional<double> backward;  // both halves at once
  std::vector<int> split;          // layers by stage
  ActionDurations durations;
  std::string svg;
  bool json = false;
};

absl::StatusOr<ActionDurations> DurationsOf(const ScheduleFlags& flags) {
  ActionDurations durations = flags.durations;
  if (flags.backward) durations.backward_input = durations.backward_weight = *flags.backward / 2;
  const double layers = std::accumulate(flags.split.begin(), flags.split.end(), 0.0);
  if (!flags.split.empty() && layers <= 0) return InvalidArgument("--split: no layers");
  for (const int stage : flags.split) {
    durations.stage_cost.push_back(stage * double(flags.split.size()) / layers);
  }
  return durations;
}

absl::StatusOr<Schedule> Make(const ScheduleFlags& flags, config::PipelineSchedule kind) {
  const int stages = flags.stages_per_rank != 0 ? flags.stages_per_rank : LeastStagesPerRank(kind);
  return MakeSchedule({.kind = kind,
                       .ranks = flags.ranks,
                       .stages_per_rank = stages,
                       .microbatches = flags.microbatches,
                       .recompute = flags.recompute});
}

int TerminalColumns() {
  winsize size = {};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 ? size.ws_col : 0;
}

Json AsJson(const Schedule& schedule, const Simulation& simulation) {
  Json ranks = Json::array();
  for (int rank = 0; rank < schedule.spec.ranks; ++rank) {
    const SimulatedRank& simulated = simulation.ranks[rank];
    Json actions = Json::array();
    for (size_t i = 0; i < simulated.spans.size(); ++i) {
      actions.push_back({{"action", ToString(schedule.ranks[rank][i])},
                         {"start", simulated.spans[i].start},
                         {"end", simulated.spans[i].end}});
    }
    ranks.push_back({{"rank", rank},
                     {"busy", simulated.busy},
                     {"idle", simulation.idle(rank)},
                     {"idle_inside", simulated.idle_inside},
                     {"peak_activations", simulated.peak_activations},
                     {"actions", std::move(actions)}});
  }
  return Json{{"schedule", Name(schedule.spec.kind)},
              {"pipeline_parallel_size", schedule.spec.ranks},
              {"virtual_pipeline_size", schedule.spec.stages_per_rank},
              {"microbatches", schedule.spec.microbatches},
              {"makespan", simulation.makespan},
              {"ideal", simulation.ideal},
              {"bubble_share", simulation.bubble_share()},
              {"bubble_to_ideal", simulation.bubble_to_ideal()},
              {"ranks", std::move(ranks)}};
}

void PrintNumbers(const Simulation& simulation) {
  std::printf("makespan %.6g, ideal %.6g: bubble %.1f %% of the time, %.1f %% of the ideal\n",
              simulation.makespan, simulation.ideal, 100 * simulation.bubble_share(),
              100 * simulation.bubble_to_ideal());
  for (size_t rank = 0; rank < simulation.ranks.size(); ++rank) {
    const double idle = simulation.idle(static_cast<int>(rank));
    const double peak = simulation.ranks[rank].peak_activations;
    std::printf("rank %zu: idle %.6g (%.1f %%), peak activations %.4g microbatch%s\n", rank, idle,
                100 * idle / simulation.makespan, peak, peak == 1 ? "" : "es");
  }
}

absl::Status Show(const ScheduleFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const config::PipelineSchedule kind, FindSchedule(flags.schedule));
  CADRE_ASSIGN_OR_RETURN(const ActionDurations durations, DurationsOf(flags));
  CADRE_ASSIGN_OR_RETURN(const Schedule schedule, Make(flags, kind));
  CADRE_ASSIGN_OR_RETURN(const Simulation simulation, SimulateSchedule(schedule, durations));
  if (!flags.svg.empty()) {
    CADRE_RETURN_IF_ERROR(WriteFileAtomic(flags.svg, DrawSvg(schedule, simulation)));
  }
  if (flags.json) {
    std::printf("%s\n", AsJson(schedule, simulation).dump().c_str());
    return absl::OkStatus();
  }
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  const DrawOptions draw = {.colour = terminal, .columns = terminal ? TerminalColumns() : 0};
  std::fputs(DrawText(schedule, simulation, draw).c_str(), stdout);
  PrintNumbers(simulation);
  return absl::OkStatus();
}

// The rank that holds the most, and the one that idles longest between its computations.
std::string TableRow(const Schedule& schedule, const Simulation& simulation) {
  double peak = 0, inside = 0;
  for (const SimulatedRank& rank : simulation.ranks) {
    peak = std::max(peak, rank.peak_activations);
    inside = std::max(inside, rank.idle_inside);
  }
  return fmt::format("| {} | {} | {:.4g} | {:.1f} % | {:.1f} % | {:.4g} | {:.4g} |\n",
                     Name(schedule.spec.kind), schedule.spec.stages_per_rank, simulation.makespan,
                     100 * simulation.bubble_to_ideal(), 100 * simulation.bubble_share(), inside,
                     peak);
}

// A split has a number for each stage, so it says how many each rank has.
absl::StatusOr<std::string> RowOf(const ScheduleFlags& flags, config::PipelineSchedule kind,
                                  const ActionDurations& durations) {
  ScheduleFlags own = flags;
  const int split = static_cast<int>(flags.split.size());
  if (split > 0 && flags.ranks > 0 && split % flags.ranks == 0) {
    own.stages_per_rank = split / flags.ranks;
  }
  CADRE_ASSIGN_OR_RETURN(const Schedule schedule, Make(own, kind));
  CADRE_ASSIGN_OR_RETURN(const Simulation simulation, SimulateSchedule(schedule, durations));
  return TableRow(schedule, simulation);
}

absl::Status Compare(const ScheduleFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const ActionDurations durations, DurationsOf(flags));
  std::string table =
      "| schedule | stages a rank | makespan | bubble, of the ideal | of the time | longest idle "
      "inside | peak activations |\n|---|---|---|---|---|---|---|\n";
  absl::Status last;
  int rows = 0;
  for (const config::PipelineSchedule kind : AllSchedules()) {
    const absl::StatusOr<std::string> row = RowOf(flags, kind, durations);
    rows += row.ok() ? 1 : 0;
    if (!row.ok()) last = row.status();
    table += row.ok() ? *row : fmt::format("| {} | {} |\n", Name(kind), Message(row.status()));
  }
  if (rows == 0) return last;
  std::fputs(table.c_str(), stdout);
  return absl::OkStatus();
}

void AddSize(CLI::App* command, ScheduleFlags* flags) {
  command->add_option("--stages", flags->ranks, "Ranks of the pipeline (pipeline_parallel_size)")
      ->capture_default_str();
  command->add_option("--microbatches", flags->microbatches, "Microbatches of a step")
      ->capture_default_str();
  ActionDurations* durations = &flags->durations;
  command->add_option("--forward", durations->forward, "Time of a rank's forward")
      ->capture_default_str();
  CLI::Option* const whole =
      command->add_option("--backward", flags->backward, "Time of its backward, half for inputs");
  command->add_option("--backward-input", durations->backward_input, "Time of the input gradients")
      ->capture_default_str()
      ->excludes(whole);
  command
      ->add_option("--backward-weight", durations->backward_weight, "Time of the weight gradients")
      ->capture_default_str()
      ->excludes(whole);
  command->add_option("--communication", durations->communication, "Time of a message")
      ->capture_default_str();
  command->add_flag("--recompute", flags->recompute, "Recompute a stage before its backward");
  command->add_option("--split", flags->split, "Layers of each stage: 4,4,3,2")->delimiter(',');
}

void AddShow(CLI::App& parent, absl::Status* status) {
  const auto flags = std::make_shared<ScheduleFlags>();
  CLI::App* command = parent.add_subcommand(
      "show", "Draw a pipeline schedule with its bubble and its peak activations");
  command->add_option("--schedule", flags->schedule, "gpipe, 1f1b, interleaved_1f1b, zb_h1 or zb_v")
      ->capture_default_str();
  AddSize(command, flags.get());
  command->add_option("--virtual", flags->stages_per_rank,
                      "Stages on each rank (virtual_pipeline_size); 0: the schedule's fewest");
  command->add_option("--svg", flags->svg, "Also write an SVG file");
  command->add_flag("--json", flags->json, "Print the numbers and every action with its times");
  command->callback([flags, status] { *status = Show(*flags); });
}

void AddCompare(CLI::App& parent, absl::Status* status) {
  const auto flags = std::make_shared<ScheduleFlags>();
  CLI::App* command =
      parent.add_subcommand("compare", "Print a table of all pipeline schedules of one size");
  AddSize(command, flags.get());
  command->callback([flags, status] { *status = Compare(*flags); });
}

}  // namespace

void AddScheduleCommand(CLI::App& root, absl::Status* status) {
  CLI::App* command = root.add_subcommand("schedule", "Draw and compare pipeline schedules");
  command->require_subcommand(1);
  AddShow(*command, status);
  AddCompare(*command, status);
}

}  // namespace cadre::cli
