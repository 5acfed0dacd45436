#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/environment.h"
#include "cluster/core_shares.h"
#include "cluster/launcher.h"
#include "cluster/rank_environment.h"
#include "core/status.h"

namespace cadre::cli {
namespace {

struct LaunchFlags {
  std::string processes;
  int nodes = 0;       // 0: not given
  int node_rank = -1;  // likewise
  std::string endpoint;
  double rendezvous_timeout = 60;
  std::string log_folder;
  int64_t max_restarts = 0;
  double hang_timeout = 0;
  std::string program;
};

constexpr char kExamples[] = R"(Examples:
  cadre launch --nproc-per-node 4 train -c job.yaml --output runs/a
  CADRE_JOB_TOKEN=secret cadre launch --nproc-per-node 8 --nnodes 2 --node-rank 0 \
      --rdzv-endpoint node0:29500 train -c job.yaml --output runs/a    # and with --node-rank 1 there
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

absl::StatusOr<LauncherOptions> ResolveOptions(const LaunchFlags& flags,
                                               const std::vector<std::string>& rest) {
  const std::string host = Variable("JOB_COMPLETION_INDEX") ? HostName() : "";
  CADRE_ASSIGN_OR_RETURN(const NodeEnvironment node, FindNodeEnvironment(Variable, host));
  LauncherOptions options;
  CADRE_ASSIGN_OR_RETURN(options.processes, ResolveProcesses(flags, node));
  options.nodes = flags.nodes > 0 ? flags.nodes : node.nodes.value_or(1);
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
  options.rendezvous_timeout =
      std::chrono::milliseconds(std::llround(std::ceil(flags.rendezvous_timeout * 1000)));
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

// A layout that does not fit is refused once, before any rank starts: the verb itself knows.
absl::Status CheckLayout(const LauncherOptions& options) {
  if (options.arguments[1] != "train") return absl::OkStatus();
  std::vector<std::string> check = options.arguments;
  check.push_back("--check-world");
  check.push_back(std::to_string(options.processes));
  std::vector<char*> arguments;
  for (std::string& argument : check) arguments.push_back(argument.data());
  arguments.push_back(nullptr);
  pid_t child = 0;
  if (const int error =
          posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, arguments.data(), environ);
      error != 0) {
    return Unavailable("cannot start {}: {}", options.arguments[1], std::strerror(error));
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (code == 0) return absl::OkStatus();
  // It has said why, in the one line that a user should see.
  std::exit(code);
}

absl::Status RunLaunch(const LaunchFlags& flags, const std::vector<std::string>& rest) {
  if (rest.empty()) return InvalidArgument("a verb is needed, such as train; --help has examples");
  if (rest.front().starts_with('-')) {
    return InvalidArgument("{}: no such option of launch; --help says more", rest.front());
  }
  if (rest.front() == "launch") return InvalidArgument("launch: a launcher cannot be launched");
  for (const std::string& argument : rest) {
    if (flags.program.empty() && (argument == "--help" || argument == "-h")) ShowVerbHelp(rest);
  }
  CADRE_ASSIGN_OR_RETURN(const LauncherOptions options, ResolveOptions(flags, rest));
  CADRE_RETURN_IF_ERROR(CheckLauncherOptions(options));
  if (flags.program.empty() && options.nodes == 1) CADRE_RETURN_IF_ERROR(CheckLayout(options));
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
  command->add_option("--nnodes", flags->nodes, "Machines, each with a launcher [1]")
      ->check(CLI::Range(1, 65536));
  command->add_option("--node-rank", flags->node_rank, "This machine's number, from 0 [0]")
      ->check(CLI::Range(0, 65535));
  command->add_option("--rdzv-endpoint", flags->endpoint,
                      "HOST:PORT of node 0, where the launchers meet [port 29500]");
  command
      ->add_option("--rdzv-timeout", flags->rendezvous_timeout, "Seconds to wait for other nodes")
      ->capture_default_str();
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
  command->callback(
      [flags, command, status] { *status = RunLaunch(*flags, command->remaining()); });
}

}  // namespace cadre::cli
