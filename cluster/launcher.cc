#include "cluster/launcher.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <memory>
#include <random>
#include <system_error>
#include <thread>

#include "cluster/gathering.h"
#include "cluster/launch_failure.h"
#include "cluster/launch_folder.h"
#include "cluster/launch_run.h"
#include "core/file.h"
#include "core/wait_notice.h"
#include "parallel/rank_list.h"

namespace cadre {
namespace {

using rendezvous::Event;
using rendezvous::Failure;

constexpr std::chrono::milliseconds kAskAgain{250};
constexpr int64_t kMostAge = int64_t{1} << 40;  // 34 years, which clocks can count

// Threads that are started while it lives inherit its mask, so that only the descriptor sees the
// signals.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigemptyset(&set_);
    for (const int signal : {SIGINT, SIGTERM}) {
      // A shell has what it starts with & ignore SIGINT; one that is sent all the same is meant.
      std::signal(signal, SIG_DFL);
      sigaddset(&set_, signal);
    }
    struct sigaction hangup;
    // Under nohup a terminal that closes is no reason to stop.
    sigaction(SIGHUP, nullptr, &hangup);
    if (hangup.sa_handler != SIG_IGN) sigaddset(&set_, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set_, &before_);
    file_ = signalfd(-1, &set_, SFD_CLOEXEC | SFD_NONBLOCK);
    std::signal(SIGPIPE, SIG_IGN);
  }
  ~BlockedSignals() {
    close(file_);
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  int file() const { return file_; }

 private:
  sigset_t set_, before_;
  int file_;
};

// While no ranks run there is nothing to end: a signal ends this process, as by default. (A thread,
// since those of gRPC would inherit signals that are not blocked.)
class DiesOnSignals {
 public:
  explicit DiesOnSignals(const BlockedSignals& signals)
      : over_(eventfd(0, EFD_CLOEXEC)), thread_([this, file = signals.file()] { Watch(file); }) {}
  ~DiesOnSignals() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = write(over_, &one, sizeof one);
    thread_.join();
    close(over_);
  }

 private:
  void Watch(int signals) const {
    pollfd files[] = {{over_, POLLIN, 0}, {signals, POLLIN, 0}};
    while (poll(files, 2, -1) < 0) {
    }
    signalfd_siginfo info;
    if (files[0].revents != 0 || read(signals, &info, sizeof info) != sizeof info) return;
    const int signal = static_cast<int>(info.ssi_signo);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    std::signal(signal, SIG_DFL);
    pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
    raise(signal);
  }

  int over_;
  std::thread thread_;
};

// Each rank takes three of them, and each connection one: where gRPC finds none left it stops
// taking connections for good.
void AllowManyFiles() {
  rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

std::string DrawToken() {
  std::random_device random;
  std::string token;
  for (int i = 0; i < 4; ++i) token += fmt::format("{:08x}", random());
  return token;
}

class Launcher {
 public:
  explicit Launcher(const LauncherOptions& options)
      : options_(options), terminal_(STDOUT_FILENO, STDERR_FILENO, isatty(STDERR_FILENO) == 1) {}

  absl::StatusOr<LaunchOutcome> Run();

 private:
  absl::Status Meet();
  absl::Status Connect();
  absl::StatusOr<rendezvous::JoinReply> AskToJoin(int64_t generation);
  absl::Status Join();
  WaitNotice NoticeOfWaiting() const;
  absl::StatusOr<Event> RunOnce();
  LaunchOutcome Outcome(const Event& event) const;

  const LauncherOptions& options_;
  RankTerminal terminal_;
  BlockedSignals signals_;
  LaunchPlace place_;
  std::unique_ptr<RendezvousServer> server_;
  std::unique_ptr<LauncherLink> link_;  // after the server, so that it ends first
};

// Node 0 listens on all addresses: its name may be another one's from outside. The token keeps
// strangers out.
absl::Status Launcher::Meet() {
  const bool alone = options_.nodes.max == 1;
  place_.rendezvous = alone ? HostPort{"127.0.0.1", 0} : options_.rendezvous;
  place_.token = alone && options_.token.empty() ? DrawToken() : options_.token;
  if (options_.node_rank == 0) {
    const std::string& host = place_.rendezvous.host;
    CADRE_ASSIGN_OR_RETURN(server_,
                           RendezvousServer::Start({.host = IsLoopback(host) ? host : "0.0.0.0",
                                                    .port = place_.rendezvous.port,
                                                    .token = place_.token,
                                                    .nodes = {.min_nodes = options_.nodes.min,
                                                              .max_nodes = options_.nodes.max,
                                                              .last_call = options_.last_call,
                                                              .check_world = options_.check_world},
                                                    .max_restarts = options_.max_restarts}));
    place_.rendezvous.port = server_->port();
  }
  const WaitNotice notice = NoticeOfWaiting();
  return Connect();
}

absl::Status Launcher::Connect() {
  CADRE_ASSIGN_OR_RETURN(link_, LauncherLink::Connect({.host = place_.rendezvous.host,
                                                       .port = place_.rendezvous.port,
                                                       .token = place_.token,
                                                       .number = options_.node_rank,
                                                       .size = options_.nodes.max,
                                                       .timeout = options_.rendezvous_timeout}));
  return absl::OkStatus();
}

// A machine that vanished keeps its number until its connection is found to be broken, which takes
// longer than it takes another one to come in its place.
absl::StatusOr<rendezvous::JoinReply> Launcher::AskToJoin(int64_t generation) {
  const auto until = std::chrono::steady_clock::now() + options_.rendezvous_timeout;
  for (bool first = true;; first = false) {
    auto joined = link_->Join(generation, options_.processes);
    const bool taken = generation < 0 && absl::IsAlreadyExists(joined.status());
    if (!taken || std::chrono::steady_clock::now() >= until) return joined;
    if (first) {
      terminal_.Line(fmt::format("warning: another launcher is node {}; waiting for its end",
                                 options_.node_rank));
    }
    std::this_thread::sleep_for(kAskAgain);
    CADRE_RETURN_IF_ERROR(Connect());
  }
}

// Others may take long, and nothing else shows that this one is well. Not by way of the terminal,
// which is one thread's: no rank writes to it now.
WaitNotice Launcher::NoticeOfWaiting() const {
  constexpr std::chrono::seconds kPatience{5};
  const std::string text =
      fmt::format("node {} of {} waits for the others at {}\n", options_.node_rank,
                  options_.nodes.max, EndpointOf(place_.rendezvous.host, place_.rendezvous.port));
  return WaitNotice(kPatience, [text] { std::fputs(text.c_str(), stderr); });
}

absl::Status Launcher::Join() {
  const DiesOnSignals interruptible(signals_);
  const WaitNotice notice = NoticeOfWaiting();
  const int64_t next = place_.generation < 0 ? -1 : place_.generation + 1;
  CADRE_ASSIGN_OR_RETURN(const rendezvous::JoinReply joined, AskToJoin(next));
  const std::vector<int> nodes(joined.nodes().begin(), joined.nodes().end());
  const auto mine = std::find(nodes.begin(), nodes.end(), options_.node_rank);
  place_.generation = joined.generation();
  place_.restarts = joined.restarts();
  place_.job_began = std::chrono::system_clock::now() -
                     std::chrono::milliseconds(std::clamp<int64_t>(joined.age_ms(), 0, kMostAge));
  place_.first_rank = joined.first_rank();
  place_.world_size = joined.world_size();
  place_.node = static_cast<int>(mine - nodes.begin());
  place_.processes = mine == nodes.end() ? 0 : options_.processes;
  if (!options_.nodes.elastic()) return absl::OkStatus();
  std::string text = fmt::format("start {}: {} ranks on {}", place_.generation, place_.world_size,
                                 RankList("node", nodes));
  if (!joined.smaller().empty()) text += fmt::format(", no more because {}", joined.smaller());
  if (mine == nodes.end()) {
    text += fmt::format("; node {} waits for the next one", options_.node_rank);
  }
  terminal_.Line(text);
  return absl::OkStatus();
}

absl::StatusOr<Event> Launcher::RunOnce() {
  CADRE_RETURN_IF_ERROR(Join());
  CADRE_ASSIGN_OR_RETURN(const auto folder,
                         LaunchFolder::Create({"/dev/shm", options_.temporary_folder, "/tmp"}));
  place_.records = folder->path();
  LaunchRun run(options_, place_, link_.get(), &terminal_, signals_.file());
  CADRE_ASSIGN_OR_RETURN(Event event, run.Run());
  if (run.left() && event.restart()) {
    terminal_.Line(fmt::format("node {} left the job, which goes on", options_.node_rank));
    event.Clear();
  }
  return event;
}

LaunchOutcome Launcher::Outcome(const Event& event) const {
  if (event.kind() != Event::FAILED) return {};
  const Failure& failure = event.failure();
  LaunchOutcome outcome{.exit_code = ExitCode(failure),
                        .error = Describe(failure, options_.nodes.max)};
  if (!options_.log_folder.empty() && failure.rank() >= 0 && failure.node() == options_.node_rank) {
    outcome.error +=
        fmt::format("; all it wrote: {}/rank-{:04}.log", options_.log_folder, failure.rank());
  }
  return outcome;
}

absl::StatusOr<LaunchOutcome> Launcher::Run() {
  {
    const DiesOnSignals interruptible(signals_);
    CADRE_RETURN_IF_ERROR(Meet());
  }
  if (!options_.log_folder.empty()) {
    std::error_code error;
    std::filesystem::create_directories(options_.log_folder, error);
    if (error) return ErrnoError(options_.log_folder, "cannot create", error.value());
  }
  for (;;) {
    CADRE_ASSIGN_OR_RETURN(const Event event, RunOnce());
    if (!event.restart()) return Outcome(event);
    if (event.kind() != Event::FAILED) continue;
    terminal_.Line(fmt::format("warning: {}; all ranks start again (restart {})",
                               Outcome(event).error, place_.restarts + 1));
  }
}

}  // namespace

absl::Status CheckLauncherOptions(const LauncherOptions& options) {
  constexpr int kMax = Gathering::kMaxMembers;
  if (options.processes < 1 || options.processes > kMax) {
    return InvalidArgument("--nproc-per-node {}: 1 to {} are allowed", options.processes, kMax);
  }
  if (options.nodes.min < 1 || options.nodes.max > kMax || options.nodes.min > options.nodes.max) {
    return InvalidArgument("--nnodes {}:{}: MIN:MAX, 1 to {}", options.nodes.min, options.nodes.max,
                           kMax);
  }
  if (options.nodes.min > kMax / options.processes) {
    return InvalidArgument("--nnodes {}, --nproc-per-node {}: a job has at most {} ranks",
                           options.nodes.min, options.processes, kMax);
  }
  if (options.node_rank < 0 || options.node_rank >= options.nodes.max) {
    return InvalidArgument("--node-rank {}: 0 to {} are allowed", options.node_rank,
                           options.nodes.max - 1);
  }
  if (options.max_restarts < 0) {
    return InvalidArgument("--max-restarts {}: 0 and more are allowed", options.max_restarts);
  }
  if (options.nodes.max > 1 && options.rendezvous.host.empty()) {
    return InvalidArgument("--nnodes above 1: --rdzv-endpoint HOST:PORT is needed");
  }
  if (options.nodes.max > 1 && options.token.empty()) {
    return InvalidArgument(
        "--nnodes above 1: set CADRE_JOB_TOKEN to one secret on all nodes, so that no stranger "
        "joins");
  }
  return absl::OkStatus();
}

absl::StatusOr<LaunchOutcome> Launch(const LauncherOptions& options) {
  CADRE_RETURN_IF_ERROR(CheckLauncherOptions(options));
  AllowManyFiles();
  return Launcher(options).Run();
}

}  // namespace cadre
