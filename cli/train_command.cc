#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <spdlog/spdlog.h>
#include <CLI/CLI.hpp>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/compute_flags.h"
#include "cli/ranks.h"
#include "cli/run_trace.h"
#include "cli/signals.h"
#include "cli/train_command.h"
#include "cluster/rank_environment.h"
#include "core/config.h"
#include "core/file.h"
#include "core/log.h"
#include "training/layout_needs.h"
#include "training/trainer.h"

namespace cadre::cli {
namespace {

struct TrainFlags {
  std::string config;
  std::vector<std::string> overrides;
  std::string output;
  std::string resume = "auto";
  std::string trace;
  std::string device, dtype, log_level = "info";
  int threads = -1;
  bool check = false;
  bool quiet = false;
};

int TerminalColumns() {
  winsize size = {};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// The flags that every verb has set the fields of their names.
std::vector<std::string> Overrides(const TrainFlags& flags) {
  std::vector<std::string> overrides = flags.overrides;
  if (!flags.device.empty()) overrides.push_back("device=" + flags.device);
  if (!flags.dtype.empty()) overrides.push_back("dtype=" + flags.dtype);
  if (flags.threads >= 0) overrides.push_back("threads=" + std::to_string(flags.threads));
  return overrides;
}

absl::StatusOr<config::TrainConfig> ConfigOf(const TrainFlags& flags) {
  config::TrainConfig config;
  const std::vector<std::string> overrides = Overrides(flags);
  CADRE_RETURN_IF_ERROR(LoadYaml(flags.config, overrides, &config));
  return config;
}

// With --resume never a job begins anew once: what it saved itself is not in its way when it is
// started again. Until it has begun a file says so, since a start may fail before.
class BeginsAnew {
 public:
  static absl::StatusOr<BeginsAnew> Find(const TrainFlags& flags) {
    CADRE_ASSIGN_OR_RETURN(const OwnStart start, FindOwnStart());
    BeginsAnew anew(flags.output + "/.begins-anew", start.leader);
    std::error_code error;
    anew.ask_ = flags.resume == "never" && start.again;
    anew.value_ = flags.resume == "never" &&
                  (!start.again || (start.leader && std::filesystem::exists(anew.mark_, error)));
    if (!anew.value_ || !start.leader) return anew;
    std::filesystem::create_directories(flags.output, error);
    if (error) return ErrnoError(flags.output, "cannot create", error.value());
    CADRE_RETURN_IF_ERROR(WriteFileAtomic(anew.mark_, ""));
    return anew;
  }
  // What rank 0 sees counts: a folder over a network may look different elsewhere for a while.
  absl::Status Agree(Ranks* ranks) {
    if (!ask_ || ranks == nullptr) return absl::OkStatus();
    CADRE_ASSIGN_OR_RETURN(
        const std::vector<std::string> seen,
        ranks->membership.bootstrap->AllGather("begins anew", value_ ? "yes" : ""));
    value_ = !seen[0].empty();
    return absl::OkStatus();
  }
  explicit operator bool() const { return value_; }
  // All ranks have begun.
  void Begun() const {
    std::error_code error;
    if (value_ && leader_) std::filesystem::remove(mark_, error);
  }

 private:
  BeginsAnew(std::string mark, bool leader) : mark_(std::move(mark)), leader_(leader) {}
  std::string mark_;
  bool leader_;
  bool ask_ = false;  // rank 0
  bool value_ = false;
};

absl::Status Train(const TrainFlags& flags, const BeginsAnew& anew,
                   const config::TrainConfig& config, Ranks* ranks, spdlog::logger* log) {
  World* world = ranks == nullptr ? nullptr : ranks->world.get();
  const bool leader = world == nullptr || world->rank() == 0;
  std::unique_ptr<RunTrace> trace;
  if (!flags.trace.empty()) {
    CADRE_ASSIGN_OR_RETURN(const Layout layout,
                           LayoutOfRun(config, world == nullptr ? 1 : world->size()));
    CADRE_ASSIGN_OR_RETURN(trace, RunTrace::Create(flags.trace, world, layout));
  }
  TrainerOptions options{.output = flags.output,
                         .resume = !anew,
                         .threads = ResolveThreads(config.threads()),
                         .progress = flags.quiet || !leader ? nullptr : stderr,
                         .terminal = isatty(STDERR_FILENO) == 1,
                         .columns = TerminalColumns(),
                         .trace = trace == nullptr ? nullptr : trace->trace(),
                         .log = log,
                         .stop = &CatchStopSignals(),
                         .world = world,
                         .recorder = world == nullptr ? nullptr : ranks->membership.recorder.get()};
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Trainer> trainer, Trainer::Create(config, options));
  anew.Begun();
  const absl::Status ended = trainer->Run();
  if (absl::IsDataLoss(ended)) return WithExitCode(ended, kTrainingStoppedExitCode);
  CADRE_RETURN_IF_ERROR(ended);
  trainer.reset();
  return trace == nullptr ? absl::OkStatus() : trace->Finish(*log);
}

absl::Status RunTrain(const TrainFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(const config::TrainConfig config, ConfigOf(flags));
  if (flags.check) {
    std::printf("%s", DumpYaml(config).c_str());
    return absl::OkStatus();
  }
  if (flags.output.empty()) return InvalidArgument("--output: a folder is needed");
  if (flags.resume != "auto" && flags.resume != "never") {
    return InvalidArgument("--resume {}: allowed are auto and never", flags.resume);
  }
  CADRE_ASSIGN_OR_RETURN(std::shared_ptr<spdlog::logger> log, MakeLogger("train", flags.log_level));
  CADRE_ASSIGN_OR_RETURN(BeginsAnew anew, BeginsAnew::Find(flags));
  CADRE_ASSIGN_OR_RETURN(const std::unique_ptr<Ranks> ranks,
                         JoinRanks(config.comm(),
                                   {.configuration = DumpYaml(config),
                                    .resume = flags.resume,
                                    .trace = !flags.trace.empty()},
                                   *log));
  const int rank = ranks == nullptr ? 0 : ranks->world->rank();
  if (rank > 0) {
    CADRE_ASSIGN_OR_RETURN(log, MakeLogger(fmt::format("train rank {}", rank), flags.log_level));
  }
  CADRE_RETURN_IF_ERROR(WithPeerLoss(anew.Agree(ranks.get()), ranks.get()));
  return WithPeerLoss(Train(flags, anew, config, ranks.get(), log.get()), ranks.get());
}

void AddOptions(CLI::App* command, const std::shared_ptr<TrainFlags>& flags) {
  command
      ->add_option("-c,--config", flags->config, "The run's YAML file (proto/train_config.proto)")
      ->required();
  command->add_option("--set", flags->overrides, "Override one field: a.b=c (may be repeated)")
      ->expected(1)
      ->take_all();
  command->add_option("--output", flags->output,
                      "Folder of metrics, checkpoints and the resolved config");
  command
      ->add_option(
          "--resume", flags->resume,
          "auto: from the newest good checkpoint in the folder; never: but when a launcher "
          "starts the job again")
      ->capture_default_str();
  command->add_option("--trace", flags->trace,
                      "Write a Chrome trace (opens in Perfetto), of all ranks on one timeline");
  command->add_option("--device", flags->device, "cpu or cuda");
  command->add_option("--dtype", flags->dtype, "bf16, f32 or f64");
  command->add_option("--threads", flags->threads, "CPU threads; 0: all cores that it may run on");
  command->add_option("--log-level", flags->log_level, "trace, debug, info, warn, error or off")
      ->capture_default_str();
  command->add_flag("--check", flags->check, "Print the resolved configuration and stop");
  command->add_flag("--quiet", flags->quiet, "No progress");
}

}  // namespace

void AddTrainCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App* command = root.add_subcommand("train", "Train a model");
  AddOptions(command, flags);
  command->callback([flags, status] { *status = RunTrain(*flags); });
}

absl::StatusOr<config::TrainConfig> TrainConfigOf(std::vector<std::string> arguments) {
  auto flags = std::make_shared<TrainFlags>();
  CLI::App app("", "train");
  AddOptions(&app, flags);
  std::reverse(arguments.begin(), arguments.end());  // as parse takes them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return InvalidArgument("{}", ParseFailure(app, error));
  }
  return ConfigOf(*flags);
}

}  // namespace cadre::cli
