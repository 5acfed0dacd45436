#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "core/config.h"
#include "core/process_memory.h"
#include "core/progress.h"
#include "core/status.h"
#include "model/model_cost.h"
#include "parallel/layout_text.h"
#include "parallel/rank_list.h"
#include "training/layout_needs.h"
#include "training/memory_plan.h"
#include "training/plan_advice.h"

namespace cadre::cli {
namespace {

using Json = nlohmann::ordered_json;

struct PlanFlags {
  std::string config;
  std::vector<std::string> overrides;
  std::string dtype;
  int world = 0;
  int processes = 0;
  int nodes = 1;
  std::optional<uint64_t> memory;
  bool json = false;
};

constexpr char kFooter[] = R"(Examples:
  cadre plan -c job.yaml --nproc-per-node 8 --nnodes 2 --memory 24GiB
  cadre plan -c job.yaml --world 64 --set parallel.tensor_parallel_size=8 --memory 80GiB
The run prints the same plan for its rank 0, with its own program and data measured.)";

struct World {
  int ranks = 1;
  int on_host = 1;
};

constexpr int kMostRanks = 65536;

absl::StatusOr<World> WorldOf(const PlanFlags& flags) {
  if (flags.world > 0 && flags.processes > 0) {
    return InvalidArgument("--world {} and --nproc-per-node {}: one of them is enough", flags.world,
                           flags.processes);
  }
  if (flags.processes > 0) {
    const int64_t ranks = int64_t{flags.processes} * flags.nodes;
    if (ranks <= kMostRanks) return World{static_cast<int>(ranks), flags.processes};
    return InvalidArgument("--nproc-per-node {} x --nnodes {} = {} ranks; allowed: 1 to {}",
                           flags.processes, flags.nodes, ranks, kMostRanks);
  }
  if (flags.nodes > 1) return InvalidArgument("--nnodes {} needs --nproc-per-node", flags.nodes);
  const int ranks = std::max(1, flags.world);
  return World{ranks, ranks};
}

// What joining the others adds to a rank's program, measured: the launcher's link, the transports.
constexpr int64_t kRankProgram = int64_t{5} << 20;

// The texts of a group of ranks, from top to bottom.
struct Column {
  std::vector<int> ranks;
  std::vector<std::string> sizes;
};

// Ranks that show the same: shards may differ by some bytes.
std::vector<Column> Columns(const std::vector<RanksAlike>& ranks) {
  std::vector<Column> columns;
  for (const RanksAlike& alike : ranks) {
    Column column{.ranks = alike.ranks};
    for (const auto& [name, bytes] : alike.plan.Parts()) column.sizes.push_back(FormatBytes(bytes));
    column.sizes.push_back(FormatBytes(alike.plan.total()));
    const auto same = std::ranges::find(columns, column.sizes, &Column::sizes);
    if (same == columns.end()) {
      columns.push_back(std::move(column));
    } else {
      same->ranks.insert(same->ranks.end(), alike.ranks.begin(), alike.ranks.end());
    }
  }
  for (Column& column : columns) std::ranges::sort(column.ranks);
  return columns;
}

void PrintTable(const std::vector<RanksAlike>& ranks) {
  constexpr size_t kAcross = 4;
  const std::vector<Column> columns = Columns(ranks);
  std::vector<std::string> names;
  for (const auto& [name, bytes] : ranks.front().plan.Parts()) names.emplace_back(name);
  names.emplace_back("total");
  for (size_t first = 0; first < columns.size(); first += kAcross) {
    const size_t end = std::min(columns.size(), first + kAcross);
    std::vector<size_t> widths;
    std::string line = fmt::format("{:<19}", "");
    for (size_t c = first; c < end; ++c) {
      const std::string title = RankList("rank", columns[c].ranks);
      widths.push_back(std::max<size_t>(10, title.size()));
      line += fmt::format("  {:>{}}", title, widths.back());
    }
    std::printf("\n%s\n", line.c_str());
    for (size_t row = 0; row < names.size(); ++row) {
      line = fmt::format("{:<19}", names[row]);
      for (size_t c = first; c < end; ++c) {
        line += fmt::format("  {:>{}}", columns[c].sizes[row], widths[c - first]);
      }
      std::printf("%s\n", line.c_str());
    }
  }
}

Json AsJson(const PlanArgs& args, const std::vector<RanksAlike>& ranks,
            const std::optional<uint64_t>& memory) {
  Json groups = Json::array();
  for (const RanksAlike& alike : ranks) {
    Json group = {{"ranks", alike.ranks}};
    for (const auto& [name, bytes] : alike.plan.Parts()) {
      std::string key(name);
      std::ranges::replace(key, ' ', '_');
      group[key] = bytes;
    }
    group["total"] = alike.plan.total();
    groups.push_back(std::move(group));
  }
  Json json = {{"model_type", args.spec.model_type},
               {"parameters", CountParameters(args.spec).total},
               {"world", args.layout.world()},
               {"groups", std::move(groups)}};
  if (memory) {
    json["memory"] = *memory;
    json["fits"] = MostBytes(ranks) <= static_cast<int64_t>(*memory);
  }
  return json;
}

// One line: who does not fit, the arithmetic, and what would help.
absl::Status Refusal(const PlanArgs& args, const std::vector<RanksAlike>& ranks, int64_t memory) {
  const auto& fullest = *std::ranges::max_element(
      ranks, {}, [](const RanksAlike& alike) { return alike.plan.total(); });
  const MemoryPlan& plan = fullest.plan;
  std::string text = fmt::format(
      "rank {} needs {}, --memory gives {}: state {} (weights {} + gradients {} + optimizer {} + "
      "packed weights {} + snapshot {}), activations {}, the rest {}",
      fullest.ranks.front(), FormatBytes(plan.total()), FormatBytes(memory),
      FormatBytes(plan.state()), FormatBytes(plan.weights), FormatBytes(plan.gradients),
      FormatBytes(plan.optimizer), FormatBytes(plan.packed_weights), FormatBytes(plan.snapshot),
      FormatBytes(plan.activations), FormatBytes(plan.total() - plan.state() - plan.activations));
  std::string fits, leaner;
  for (const LeanerRun& run : LeanerRuns(args)) {
    std::string* list = run.bytes <= memory ? &fits : &leaner;
    *list +=
        fmt::format("{}{} ({})", list->empty() ? "" : ", ", run.change, FormatBytes(run.bytes));
  }
  if (!fits.empty()) {
    text += "; it fits with " + fits;
  } else if (!leaner.empty()) {
    text += "; no single change is enough, these help: " + leaner;
  }
  return InvalidArgument("{}", text);
}

absl::Status RunPlan(const PlanFlags& flags) {
  if (flags.memory && *flags.memory < (1 << 20)) {
    return InvalidArgument("--memory: {} bytes; at least 1 MiB, and with its unit: 24GiB, 512MiB",
                           *flags.memory);
  }
  const int64_t program = ReadResidentMemory().now;
  std::vector<std::string> overrides = flags.overrides;
  if (!flags.dtype.empty()) overrides.push_back("dtype=" + flags.dtype);
  config::TrainConfig config;
  CADRE_RETURN_IF_ERROR(LoadYaml(flags.config, overrides, &config));
  CADRE_ASSIGN_OR_RETURN(const World world, WorldOf(flags));
  CADRE_ASSIGN_OR_RETURN(const Layout layout, LayoutOfRun(config, world.ranks));
  CADRE_ASSIGN_OR_RETURN(const DecoderSpec spec, SpecOfRun(config));
  const PlanArgs args = {.config = config,
                         .spec = spec,
                         .layout = layout,
                         .compute = ComputeTypeOf(config),
                         .ranks_on_host = world.on_host,
                         .measured = {.program = program + (world.ranks > 1 ? kRankProgram : 0)}};
  CADRE_ASSIGN_OR_RETURN(const std::vector<RanksAlike> ranks, PlanRanks(args));
  if (flags.json) {
    std::printf("%s\n", AsJson(args, ranks, flags.memory).dump().c_str());
  } else {
    const bool experts = std::ranges::any_of(spec.layers, &LayerSpec::is_moe);
    std::printf("%s: %s parameters in %s; %s\n", spec.model_type.c_str(),
                FormatCount(static_cast<double>(CountParameters(spec).total)).c_str(),
                std::string(Name(args.compute)).c_str(), LayoutText(layout, experts).c_str());
    PrintTable(ranks);
  }
  if (!flags.memory) return absl::OkStatus();
  const auto memory = static_cast<int64_t>(*flags.memory);
  if (MostBytes(ranks) <= memory) return absl::OkStatus();
  std::fflush(stdout);
  return Refusal(args, ranks, memory);
}

}  // namespace

void AddPlanCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<PlanFlags>();
  CLI::App* command = root.add_subcommand(
      "plan", "Print what each rank of a training run will hold in memory, without running it");
  command->footer(kFooter);
  command
      ->add_option("-c,--config", flags->config, "The run's YAML file (proto/train_config.proto)")
      ->required();
  command->add_option("--set", flags->overrides, "Override one field: a.b=c (may be repeated)")
      ->expected(1)
      ->take_all();
  command->add_option("--world", flags->world, "Ranks, all on one machine [1]")
      ->check(CLI::Range(1, kMostRanks));
  command->add_option("--nproc-per-node", flags->processes, "Ranks on each machine")
      ->check(CLI::Range(1, 65536));
  command->add_option("--nnodes", flags->nodes, "Machines [1]")->check(CLI::Range(1, 65536));
  command
      ->add_option("--memory", flags->memory,
                   "What one rank may hold: 24GiB, 512MiB; more is refused (exit code 2)")
      ->transform(CLI::AsSizeValue(false));
  command->add_option("--dtype", flags->dtype, "bf16, f32 or f64");
  command->add_flag("--json", flags->json, "Print the numbers as JSON, in bytes");
  command->callback([flags, status] { *status = RunPlan(*flags); });
}

}  // namespace cadre::cli
