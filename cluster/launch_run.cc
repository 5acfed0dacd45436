#include "cluster/launch_run.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

#include "cluster/core_shares.h"
#include "cluster/rank_environment.h"
#include "core/file.h"
#include "parallel/rank_list.h"

namespace cadre {
namespace {

using rendezvous::Event;
using rendezvous::Failure;

// Where the rendezvous says nothing, this node's ranks end all the same.
constexpr std::chrono::milliseconds kWaitForRendezvous{1000};

Failure FailureOf(int rank, const RankExit& exit, std::string last_error) {
  Failure failure;
  failure.set_rank(rank);
  failure.set_kind(exit.killed ? Failure::KILLED : Failure::EXITED);
  failure.set_code(exit.code);
  failure.set_peer_lost(!exit.killed && exit.code == kPeerLostExitCode);
  failure.set_last_error(std::move(last_error));
  return failure;
}

Event FailedEvent(const Failure& failure) {
  Event event;
  event.set_kind(Event::FAILED);
  *event.mutable_failure() = failure;
  return event;
}

bool OlderThan(const std::string& path, std::chrono::system_clock::time_point time) {
  struct stat file;
  if (stat(path.c_str(), &file) != 0) return false;
  const auto changed =
      std::chrono::seconds(file.st_mtim.tv_sec) + std::chrono::nanoseconds(file.st_mtim.tv_nsec);
  return changed < time.time_since_epoch();
}

// What an earlier job wrote is cut off: a node may come to this one when it has run for long.
absl::StatusOr<int> OpenLog(const LauncherOptions& options, int rank, const LaunchPlace& place) {
  if (options.log_folder.empty()) return -1;
  const std::string path = fmt::format("{}/rank-{:04}.log", options.log_folder, rank);
  const bool fresh = place.generation == 0 || OlderThan(path, place.job_began);
  const int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (fresh ? O_TRUNC : 0);
  const int file = open(path.c_str(), flags, 0644);
  if (file < 0) return ErrnoError(path, "cannot create", errno);
  return file;
}

std::string WhyResized(const Event& event) {
  const std::vector<int> joining(event.joining().begin(), event.joining().end());
  const std::vector<int> leaving(event.leaving().begin(), event.leaving().end());
  if (leaving.empty()) return RankList("node", joining) + " joined";
  return fmt::format("{} {}", RankList("node", leaving), leaving.size() == 1 ? "leaves" : "leave");
}

}  // namespace

LaunchRun::LaunchRun(const LauncherOptions& options, const LaunchPlace& place, LauncherLink* link,
                     RankTerminal* terminal, int signals)
    : options_(options), place_(place), link_(link), terminal_(terminal), signals_(signals) {}

std::string LaunchRun::RecordPath(int rank) const {
  return fmt::format("{}/rank-{:04}", place_.records, rank);
}

std::vector<std::string> LaunchRun::Variables(int local_rank, int threads) const {
  const int rank = place_.first_rank + local_rank;
  std::vector<std::string> variables = {
      fmt::format("RANK={}", rank),
      fmt::format("WORLD_SIZE={}", place_.world_size),
      fmt::format("LOCAL_RANK={}", local_rank),
      fmt::format("LOCAL_WORLD_SIZE={}", place_.processes),
      fmt::format("GROUP_RANK={}", place_.node),
      fmt::format("MASTER_ADDR={}", place_.rendezvous.host),
      fmt::format("MASTER_PORT={}", place_.rendezvous.port),
      fmt::format("TORCHELASTIC_RESTART_COUNT={}", place_.restarts),
      fmt::format("TORCHELASTIC_MAX_RESTARTS={}", options_.max_restarts),
      fmt::format("{}={}", kRendezvousVariable,
                  EndpointOf(place_.rendezvous.host, place_.rendezvous.port)),
      fmt::format("{}={}", kGenerationVariable, place_.generation),
      fmt::format("{}={}", kTokenVariable, place_.token),
      fmt::format("{}={}", kLauncherVariable, getpid()),
      fmt::format("{}={}", kFlightRecordVariable, RecordPath(rank))};
  if (options_.pin_cores) variables.push_back(fmt::format("OMP_NUM_THREADS={}", threads));
  return variables;
}

absl::StatusOr<LaunchRun::Rank> LaunchRun::StartRank(int local_rank) {
  const int rank = place_.first_rank + local_rank;
  CoreShare share;
  if (options_.pin_cores) share = ShareCores(AllowedCores(), local_rank, place_.processes);
  CADRE_ASSIGN_OR_RETURN(const int log, OpenLog(options_, rank, place_));
  auto output = std::make_unique<RankOutput>(rank, rank == 0, log, terminal_);
  CADRE_ASSIGN_OR_RETURN(
      RankProcess process,
      RankProcess::Start(
          {.program = options_.program,
           .arguments = options_.arguments,
           .environment = WithVariables(options_.environment, Variables(local_rank, share.threads)),
           .cores = share.cores,
           .output_terminal = rank == 0 && isatty(STDOUT_FILENO) == 1,
           .error_terminal = rank == 0 && isatty(STDERR_FILENO) == 1}));
  return Rank{std::move(process), std::move(output)};
}

void LaunchRun::StartWatchdog() {
  if (ranks_.empty()) return;
  HangWatchdogOptions options{.hang = {.world_size = place_.world_size},
                              .expires_after = options_.hang_timeout};
  for (size_t i = 0; i < ranks_.size(); ++i) {
    const int rank = place_.first_rank + static_cast<int>(i);
    options.ranks.push_back(
        {.rank = rank, .pid = ranks_[i].process.pid(), .record = RecordPath(rank)});
  }
  watchdog_ = std::make_unique<HangWatchdog>(
      std::move(options), [mail = mail_](const HangReport& hang, bool expired) {
        mail->Post({.event = std::nullopt, .hang = hang, .expired = expired});
      });
}

absl::StatusOr<Event> LaunchRun::Run() {
  for (int local_rank = 0; local_rank < place_.processes; ++local_rank) {
    CADRE_ASSIGN_OR_RETURN(Rank rank, StartRank(local_rank));
    ranks_.push_back(std::move(rank));
    ++running_;
  }
  StartWatchdog();
  link_->Watch(place_.generation, [mail = mail_](const Event& event) {
    mail->Post({.event = event, .hang = std::nullopt});
  });
  while (running_ > 0 || !outcome_) Wait();
  watchdog_.reset();
  terminal_->Release();
  return *outcome_;
}

std::optional<LaunchRun::Clock::time_point> LaunchRun::NextTime() const {
  std::optional<Clock::time_point> next = terminal_->NextRelease();
  for (const auto& time : {end_at_, leave_at_, kill_at_}) {
    if (time && (!next || *time < *next)) next = time;
  }
  return next;
}

void LaunchRun::Wait() {
  std::vector<pollfd> files = {{signals_, POLLIN, 0}, {mail_->bell(), POLLIN, 0}};
  for (const Rank& rank : ranks_) {  // negative ones are passed over
    files.push_back({rank.process.ended(), POLLIN, 0});
    files.push_back({rank.process.output(), POLLIN, 0});
    files.push_back({rank.process.errors(), POLLIN, 0});
  }
  int milliseconds = -1;
  if (const auto next = NextTime()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - Clock::now());
    milliseconds = static_cast<int>(std::max<int64_t>(left.count(), 0));
  }
  if (poll(files.data(), files.size(), milliseconds) < 0) return;
  // Deaths before anything that others say because of them.
  TakeEnded();
  for (Rank& rank : ranks_) {
    Read(rank, false);
    Read(rank, true);
  }
  TakeMail();
  TakeSignals();
  Tick(Clock::now());
}

void LaunchRun::Read(Rank& rank, bool errors) {
  char buffer[16384];
  // Bounded, so that one that writes without end does not hold up the others.
  for (int i = 0; i < 16; ++i) {
    const int file = errors ? rank.process.errors() : rank.process.output();
    if (file < 0) return;
    const ssize_t n = read(file, buffer, sizeof buffer);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) {
      rank.output->Take(errors, {buffer, static_cast<size_t>(n)});
    } else if (errors) {  // a pseudo-terminal ends with EIO
      rank.process.CloseErrors();
    } else {
      rank.process.CloseOutput();
    }
  }
}

void LaunchRun::TakeEnded() {
  std::vector<pollfd> files;
  for (const Rank& rank : ranks_) files.push_back({rank.process.ended(), POLLIN, 0});
  poll(files.data(), files.size(), 0);
  std::vector<Failure> failures;
  for (size_t i = 0; i < ranks_.size(); ++i) {
    if ((files[i].revents & POLLIN) == 0) continue;
    Rank& rank = ranks_[i];
    Read(rank, false);
    Read(rank, true);
    rank.output->Finish();
    const RankExit exit = rank.process.Reap();
    rank.process.CloseOutput();
    rank.process.CloseErrors();
    --running_;
    if (!exit.killed && exit.code == 0) {
      ++done_;
      continue;
    }
    // One that was asked to stop before it could take that is not at fault.
    const bool asked = exit.killed && exit.code == stop_signal_;
    failures.push_back(FailureOf(asked ? -1 : place_.first_rank + static_cast<int>(i), exit,
                                 rank.output->LastError(!exit.killed)));
  }
  // Of several seen at once, a signal was there before the exits that it caused.
  std::stable_sort(failures.begin(), failures.end(), [](const Failure& a, const Failure& b) {
    return a.kind() == Failure::KILLED && b.kind() != Failure::KILLED;
  });
  for (const Failure& failure : failures) Report(failure);
  if (done_ == place_.processes && done_ > 0 && !outcome_) {
    Event event;
    event.set_kind(Event::DONE);
    link_->Report(place_.generation, event);
    done_ = -1;  // once
  }
}

void LaunchRun::Report(const Failure& failure) {
  if (outcome_ || ending_) return;
  if (!first_failure_) {
    first_failure_ = failure;
    first_failure_->set_node(options_.node_rank);
    end_at_ = Clock::now() + kWaitForRendezvous;
  }
  link_->Report(place_.generation, FailedEvent(failure));
}

// `timeout` and shells signal a process and then its group: that is one request.
bool LaunchRun::Repeats(int signal) {
  constexpr std::chrono::milliseconds kAtOnce{100};
  if (!first_signal_) {
    first_signal_ = {signal, Clock::now()};
    return false;
  }
  return signal == first_signal_->first && Clock::now() - first_signal_->second < kAtOnce;
}

void LaunchRun::TakeSignals() {
  signalfd_siginfo info;
  while (read(signals_, &info, sizeof info) == sizeof info) {
    const int signal = static_cast<int>(info.ssi_signo);
    if (Repeats(signal)) continue;
    if (!std::exchange(asked_to_stop_, true)) {
      AskToStop(signal);
      continue;
    }
    Failure failure;
    failure.set_rank(-1);
    failure.set_kind(Failure::KILLED);
    failure.set_code(signal);
    Report(failure);
    if (!outcome_ && !std::exchange(asked_to_kill_, true)) {
      end_at_ = Clock::now() + kWaitForRendezvous;
    }
    SignalAll(SIGKILL);
  }
}

// SIGTERM is what a machine that is taken away gets; the rendezvous says whether the others can do
// without it.
void LaunchRun::AskToStop(int signal) {
  left_ = signal == SIGTERM && options_.nodes.elastic() && options_.node_rank != 0;
  if (left_ && place_.processes == 0) {
    outcome_.emplace().set_kind(Event::DONE);
    return;
  }
  Event event;
  event.set_kind(left_ ? Event::LEAVE : Event::STOP);
  link_->Report(place_.generation, event);
  if (left_) {
    leave_at_ = Clock::now() + kWaitForRendezvous;
  } else {
    StopRanks(signal);
  }
}

void LaunchRun::TakeMail() {
  for (const LaunchMailbox::Mail& one : mail_->Take()) {
    if (one.event) {
      TakeEvent(*one.event);
    } else if (!outcome_ && !one.expired) {
      terminal_->Line("warning: " + one.hang->text);
      TellOthers(*one.hang);
    } else if (!outcome_) {
      Failure failure;
      failure.set_rank(one.hang->rank);
      failure.set_kind(Failure::HUNG);
      failure.set_last_error(one.hang->text);
      Report(failure);
    }
  }
}

void LaunchRun::TellOthers(const HangReport& hang) {
  if (hang.elsewhere.empty()) return;
  Event event;
  event.set_kind(Event::STALLED);
  event.set_stalled(hang.elsewhere);
  link_->Report(place_.generation, event);
}

void LaunchRun::TakeEvent(const Event& event) {
  if (outcome_) return;
  if (event.kind() == Event::STALLED) {
    const bool others = event.node() != options_.node_rank;
    if (others && watchdog_ != nullptr) watchdog_->OthersWait(event.stalled());
    return;
  }
  if (event.kind() == Event::DONE) return EndAll(event);
  if (event.kind() == Event::FAILED) return EndAll(Verdict(event));
  if (event.kind() == Event::STOP) asked_to_stop_ = true;
  if (event.kind() == Event::RESIZE) {
    terminal_->Line(WhyResized(event) + ": all ranks save and start again");
  }
  StopRanks(SIGTERM);
}

void LaunchRun::StopRanks(int signal) {
  if (std::exchange(ranks_stopping_, true)) return;
  stop_signal_ = signal;
  SignalAll(signal);
}

Event LaunchRun::Verdict(const Event& event) const {
  const Failure& failure = event.failure();
  const bool no_rendezvous = failure.kind() == Failure::LAUNCHER_GONE && failure.node() == 0;
  const bool own = first_failure_ && !first_failure_->peer_lost();
  return no_rendezvous && own ? FailedEvent(*first_failure_) : event;
}

void LaunchRun::EndAll(const Event& outcome) {
  outcome_ = outcome;
  end_at_.reset();
  if (outcome.kind() != Event::FAILED && !outcome.restart()) return;
  const Failure& failure = outcome.failure();
  terminal_->Blame(failure.rank(), failure.last_error(), Clock::now());
  EndRanks();
}

void LaunchRun::EndRanks() {
  if (std::exchange(ending_, true)) return;
  SignalAll(SIGTERM);
  kill_at_ = Clock::now() + kTermToKill;
}

void LaunchRun::Tick(Clock::time_point now) {
  terminal_->ReleaseOld(now);
  if (end_at_ && now >= *end_at_) {
    end_at_.reset();
    // Whether all start again is not this node's to say, unless its user waits for no answer.
    asked_to_kill_ ? EndAll(FailedEvent(*first_failure_)) : EndRanks();
  }
  if (leave_at_ && now >= *leave_at_) {
    leave_at_.reset();
    StopRanks(SIGTERM);
  }
  if (kill_at_ && now >= *kill_at_) {
    SignalAll(SIGKILL);
    kill_at_.reset();
  }
}

void LaunchRun::SignalAll(int signal) {
  for (const Rank& rank : ranks_) rank.process.Signal(signal);
}

}  // namespace cadre
