#include <unistd.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/arguments.h"
#include "cli/commands.h"
#include "cli/environment.h"
#include "cli/serve_command.h"
#include "cli/train_command.h"
#include "cluster/core_shares.h"
#include "cluster/launcher.h"
#include "cluster/rank_environment.h"
#include "core/status.h"
#include "training/layout_needs.h"

namespace cadre::cli {
namespace {

struct LaunchFlags {
  std::string processes;
  std::string nodes;
  int node_rank = -1;  // not given
  std::string endpoint;
  double rendezvous_timeout = 60;
  std::optional<double> last_call;
  std::string log_folder;
  int64_t max_restarts = 0;
  double hang_timeout = 0;
  std::string program;
};

constexpr char kExamples[] = R"(Examples:
  cadre launch --nproc-per-node 4 train -c job.yaml --output runs/a
  cadre launch --nproc-per-node 2 serve --model DIR --set parallel.tensor_parallel_size=2
  CADRE_JOB_TOKEN=secret cadre launch --nproc-per-node 8 --nnodes 2 --node-rank 0 \
      --rdzv-endpoint node0:29500 train -c job.yaml --output runs/a    # and with --node-rank 1 there
  ... --nnodes 2:4 --max-restarts 10 ...    # on two to four machines, whichever are there
docs/launch.md: torchrun's variables, srun, mpirun and Kubernetes, where no launcher is needed.)";

absl::StatusOr<int> ResolveProcesses(const LaunchFlags& flags, const NodeEnvironment& node) {
  if (flags.processes.empty() && node.processes) return *node.processes;
  if (flags.processes.empty()) {
    return InvalidArgument("--nproc-per-node: how many ranks on this machine?");
  }
  if (flags.processes == "auto" || flags.processes == "cpu") {
    return static_cast<int>(AllowedCores().size());
  }
  int processes = 0;
  if (!CLI::detail::lexical_cast(flags.processes, processes)) {
    return InvalidArgument("--nproc-per-node {}: a number, or auto for one a core",
                           flags.processes);
  }
  return processes;
}

std::chrono::milliseconds Milliseconds(double seconds) {
  return std::chrono::milliseconds(std::llround(std::ceil(seconds * 1000)));
}

absl::Status CheckLastCall(const LaunchFlags& flags, const NodeRange& nodes) {
  if (!(*flags.last_call >= 0) || *flags.last_call > flags.rendezvous_timeout) {
    return InvalidArgument("--rdzv-last-call {}: 0 to --rdzv-timeout, {} seconds", *flags.last_call,
                           flags.rendezvous_timeout);
  }
  if (nodes.elastic()) return absl::OkStatus();
  return InvalidArgument(
      "--rdzv-last-call {}: --nnodes {} waits for all of them; it needs MIN:MAX, MIN less than MAX",
      *flags.last_call, nodes.max);
}

absl::StatusOr<LauncherOptions> ResolveOptions(const LaunchFlags& flags,
                                               const std::vector<std::string>& rest) {
  const std::string host = Variable("JOB_COMPLETION_INDEX") ? HostName() : "";
  CADRE_ASSIGN_OR_RETURN(const NodeEnvironment node, FindNodeEnvironment(Variable, host));
  LauncherOptions options;
  CADRE_ASSIGN_OR_RETURN(options.processes, ResolveProcesses(flags, node));
  options.nodes = node.nodes.value_or(NodeRange{});
  if (!flags.nodes.empty()) {
    CADRE_ASSIGN_OR_RETURN(options.nodes, ParseNodeRange("--nnodes", flags.nodes));
  }
  options.node_rank = flags.node_rank >= 0 ? flags.node_rank : node.node_rank.value_or(0);
  if (!flags.endpoint.empty()) {
    CADRE_ASSIGN_OR_RETURN(options.rendezvous, ParseEndpoint("--rdzv-endpoint", flags.endpoint));
  } else if (node.rendezvous) {
    options.rendezvous = *node.rendezvous;
  }
  options.token = Variable(kTokenVariable).value_or("");
  if (!(flags.rendezvous_timeout > 0) || flags.rendezvous_timeout > 86400) {
    return InvalidArgument("--rdzv-timeout {}: more than 0, at most 86400 seconds",
                           flags.rendezvous_timeout);
  }
  options.rendezvous_timeout = Milliseconds(flags.rendezvous_timeout);
  if (flags.last_call) {
    CADRE_RETURN_IF_ERROR(CheckLastCall(flags, options.nodes));
    options.last_call = Milliseconds(*flags.last_call);
  }
  if (!(flags.hang_timeout >= 0) || flags.hang_timeout > 1e8) {
    return InvalidArgument("--hang-timeout {}: seconds, or 0 to report only", flags.hang_timeout);
  }
  options.hang_timeout = std::chrono::nanoseconds(std::llround(flags.hang_timeout * 1e9));
  options.log_folder = flags.log_folder;
  options.temporary_folder = Variable("TMPDIR").value_or("");
  options.max_restarts = flags.max_restarts;
  options.environment = AllVariables();
  options.pin_cores = !Variable("OMP_NUM_THREADS");
  options.arguments = {"cadre"};
  if (!flags.program.empty()) {
    options.program = flags.program;
    options.arguments = {flags.program};
  }
  options.arguments.insert(options.arguments.end(), rest.begin(), rest.end());
  return options;
}

// The verb's own help, once and without ranks.
void ShowVerbHelp(const std::vector<std::string>& rest) {
  std::vector<std::string> help = {"cadre", rest.front(), "--help"};
  std::vector<char*> arguments;
  for (std::string& argument : help) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  execv("/proc/self/exe", arguments.data());
}

// The verb itself knows which worlds it can be laid over: null where any will do.
absl::StatusOr<NodeRounds::CheckWorld> WorldCheck(const LaunchFlags& flags,
                                                  const std::vector<std::string>& rest) {
  if (!flags.program.empty()) return NodeRounds::CheckWorld();
  const std::vector<std::string> arguments(rest.begin() + 1, rest.end());
  if (rest.front() == "serve") {
    CADRE_ASSIGN_OR_RETURN(const config::ServeConfig config, ServeConfigOf(arguments));
    return [config](int world) { return LayoutOfServer(config, world).status(); };
  }
  CADRE_ASSIGN_OR_RETURN(config::TrainConfig config, TrainConfigOf(arguments));
  // Asked of the same model whatever becomes of its folder.
  CADRE_ASSIGN_OR_RETURN(HfConfig hf, ModelOfRun(config));
  config.clear_model_path();
  config.clear_init_from();
  *config.mutable_model() = std::move(hf.model);
  return [config](int world) { return LayoutOfRun(config, world).status(); };
}

// What ranks would refuse one by one.
absl::Status CheckVerb(const CLI::App& command, const LaunchFlags& flags,
                       const std::vector<std::string>& rest) {
  if (rest.empty()) return InvalidArgument("a verb is needed, such as train; --help has examples");
  const std::string& verb = rest.front();
  if (verb.starts_with('-')) {
    return InvalidArgument("{}: no such option of launch; --help says more", verb);
  }
  if (!flags.program.empty()) return absl::OkStatus();
  if (verb == "launch") return InvalidArgument("launch: a launcher cannot be launched");
  CADRE_RETURN_IF_ERROR(CheckVerbs(*command.get_parent(), rest));
  if (verb != "train" && verb != "serve") {
    return InvalidArgument("launch: {} is one process; allowed: train, serve, or any --program",
                           verb);
  }
  for (const std::string& argument : rest) {
    const std::string option = argument.substr(0, argument.find('='));
    if (!option.starts_with("--") || option == "--help") continue;
    if (command.get_option_no_throw(option) == nullptr) continue;
    return InvalidArgument("{}: an option of launch, it stands before {}", option, verb);
  }
  return absl::OkStatus();
}

absl::Status RunLaunch(const CLI::App& command, const LaunchFlags& flags) {
  const std::vector<std::string> rest = command.remaining();
  CADRE_RETURN_IF_ERROR(CheckVerb(command, flags, rest));
  for (const std::string& argument : rest) {
    if (flags.program.empty() && (argument == "--help" || argument == "-h")) ShowVerbHelp(rest);
  }
  CADRE_ASSIGN_OR_RETURN(LauncherOptions options, ResolveOptions(flags, rest));
  CADRE_RETURN_IF_ERROR(CheckLauncherOptions(options));
  if (options.node_rank == 0) {
    CADRE_ASSIGN_OR_RETURN(options.check_world, WorldCheck(flags, rest));
  }
  // With one node the answer is known before it opens a rendezvous.
  if (options.nodes.max == 1 && options.check_world) {
    CADRE_RETURN_IF_ERROR(options.check_world(options.processes));
  }
  CADRE_ASSIGN_OR_RETURN(const LaunchOutcome outcome, Launch(options));
  if (outcome.exit_code == 0) return absl::OkStatus();
  return WithExitCode(absl::UnknownError(outcome.error), outcome.exit_code);
}

}  // namespace

void AddLaunchCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<LaunchFlags>();
  CLI::App* command = root.add_subcommand(
      "launch", "Run a verb as several ranks: cadre launch OPTIONS VERB ARGS...");
  command->prefix_command();
  command->footer(kExamples);
  command->add_option("--nproc-per-node", flags->processes,
                      "Ranks on this machine; auto: one a core");
  command->add_option("--nnodes", flags->nodes,
                      "Machines, each with a launcher: N, or MIN:MAX where the job goes on without "
                      "those that are lost and takes in those that come [1]");
  command->add_option("--node-rank", flags->node_rank, "This machine's number, from 0 [0]")
      ->check(CLI::Range(0, 65535));
  command->add_option("--rdzv-endpoint", flags->endpoint,
                      "HOST:PORT of node 0, where the launchers meet [port 29500]");
  command
      ->add_option("--rdzv-timeout", flags->rendezvous_timeout, "Seconds to wait for other nodes")
      ->capture_default_str();
  command->add_option(
      "--rdzv-last-call", flags->last_call,
      "With MIN:MAX, seconds that a start waits for more nodes than MIN, and a run for "
      "further ones before it makes room for one; at most --rdzv-timeout; node 0's counts [30]");
  command->add_option("--log-dir", flags->log_folder, "Folder for all that each rank writes");
  command
      ->add_option("--max-restarts", flags->max_restarts,
                   "Start all ranks again that often after a failure")
      ->capture_default_str();
  command
      ->add_option("--hang-timeout", flags->hang_timeout,
                   "Seconds after which a hang is a failure; 0: it is reported only")
      ->capture_default_str();
  // For tests.
  command->add_option("--program", flags->program)->group("");
  command->callback([flags, command, status] { *status = RunLaunch(*command, *flags); });
}

}  // namespace cadre::cli
