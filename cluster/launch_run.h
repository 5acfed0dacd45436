// One start of a job's ranks on this node, until all of them have ended. Private to this folder.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/hang_watchdog.h"
#include "cluster/launch_mailbox.h"
#include "cluster/launcher.h"
#include "cluster/launcher_link.h"
#include "cluster/rank_output.h"
#include "cluster/rank_process.h"
#include "core/status.h"
#include "proto/rendezvous.pb.h"

namespace cadre {

struct LaunchPlace {
  int64_t generation = -1;
  int64_t restarts = 0;
  int node = 0;       // among those that take part
  int processes = 0;  // ranks on this node; 0: it waits for the next start
  int first_rank = 0;
  int world_size = 0;
  HostPort rendezvous;
  std::string token;
  std::string records;  // folder of flight records
  std::chrono::system_clock::time_point job_began;
};

class LaunchRun {
 public:
  static constexpr std::chrono::milliseconds kTermToKill{1000};

  // `signals`: a descriptor of signalfd. All are borrowed.
  LaunchRun(const LauncherOptions& options, const LaunchPlace& place, LauncherLink* link,
            RankTerminal* terminal, int signals);
  // The job's outcome. Errors: a rank that could not be started.
  absl::StatusOr<rendezvous::Event> Run();
  // This node was asked to leave a job that goes on.
  bool left() const { return left_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Rank {
    RankProcess process;
    std::unique_ptr<RankOutput> output;
  };

  absl::StatusOr<Rank> StartRank(int local_rank);
  std::vector<std::string> Variables(int local_rank, int threads) const;
  std::string RecordPath(int rank) const;
  void StartWatchdog();

  void Wait();
  void Read(Rank& rank, bool errors);
  void TakeSignals();
  bool Repeats(int signal);
  void AskToStop(int signal);
  void TakeMail();
  void TellOthers(const HangReport& hang);
  void TakeEvent(const rendezvous::Event& event);
  void TakeEnded();
  void Tick(Clock::time_point now);
  std::optional<Clock::time_point> NextTime() const;

  void SignalAll(int signal);
  // So that they end their step, save and stop: a second signal would kill them.
  void StopRanks(int signal);
  void Report(const rendezvous::Failure& failure);
  // Of a job that failed: where the rendezvous went before it gave one, this node's own counts.
  rendezvous::Event Verdict(const rendezvous::Event& event) const;
  // The outcome is known: the ranks that still run are to end.
  void EndAll(const rendezvous::Event& outcome);
  void EndRanks();

  const LauncherOptions& options_;
  const LaunchPlace place_;
  LauncherLink* link_;
  RankTerminal* terminal_;
  int signals_;
  const std::shared_ptr<LaunchMailbox> mail_ = std::make_shared<LaunchMailbox>();

  std::vector<Rank> ranks_;
  int running_ = 0;
  int done_ = 0;
  bool asked_to_stop_ = false;  // somebody asked for the whole job's end, or this node's
  bool asked_to_kill_ = false;  // here, once more
  bool left_ = false;
  bool ranks_stopping_ = false;
  int stop_signal_ = 0;  // that ranks got then
  std::optional<std::pair<int, Clock::time_point>> first_signal_;
  bool ending_ = false;
  std::optional<rendezvous::Event> outcome_;
  std::optional<rendezvous::Failure> first_failure_;  // of this node
  // When ranks get SIGTERM though the rendezvous has not answered: after a failure, on leaving.
  std::optional<Clock::time_point> end_at_, leave_at_;
  std::optional<Clock::time_point> kill_at_;
  std::unique_ptr<HangWatchdog> watchdog_;
};

}  // namespace cadre
