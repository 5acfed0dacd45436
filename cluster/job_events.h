// JobEvents: what happened to one start of a job, in the one order that all its launchers see. The
// rendezvous' logic without its transport, as Gathering is.
//
// Of several failures the first is the job's. A rank that ended because it lost a peer may well be
// heard of before that peer, so it counts only when no other failure came within a short time.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/status.h"
#include "proto/rendezvous.pb.h"

namespace cadre {

class JobEvents {
 public:
  using Clock = std::chrono::steady_clock;
  using Answer = std::function<void(const absl::StatusOr<rendezvous::Event>&)>;
  using Due = std::vector<std::function<void()>>;  // to be called once no lock is held

  static constexpr std::chrono::milliseconds kWaitForCulprit{500};
  static constexpr size_t kMaxErrorBytes = 4096;
  static constexpr size_t kMaxEvents = 256;  // beyond them only the outcome counts

  // `nodes`: how many have ranks.
  JobEvents(int64_t generation, int nodes, bool may_restart)
      : generation_(generation), nodes_(nodes), may_restart_(may_restart) {}

  Due Report(int node, const rendezvous::Event& event, Clock::time_point now);
  // Answers when event `number` (from 0) is there. One call a node; a second one replaces the
  // first, which is refused.
  Due Watch(int node, int number, uint64_t ticket, Answer answer);
  // The watching call with this ticket broke.
  Due Leave(int node, uint64_t ticket);
  // The launcher of a node that has ranks is gone.
  Due Lose(int node, Clock::time_point now);
  // All ranks are to save, end and start again, on other nodes. Not where they end anyway.
  Due Resize(const std::vector<int>& joining, const std::vector<int>& leaving);
  Due Expire(Clock::time_point now);
  Due Close(const absl::Status& status);
  std::optional<Clock::time_point> NextDeadline() const { return verdict_at_; }

  int64_t generation() const { return generation_; }
  // Whether a node has been answered with the outcome.
  bool Told(int node) const { return told_.contains(node); }
  // The last event, when nothing more will come.
  const rendezvous::Event* outcome() const;

 private:
  struct Watcher {
    int number = 0;
    uint64_t ticket = 0;
    Answer answer;
  };
  Due Fail(const rendezvous::Failure& failure, Clock::time_point now);
  Due Append(const rendezvous::Event& event);
  Due Judge(const rendezvous::Failure& failure);

  int64_t generation_;
  int nodes_;
  bool may_restart_;
  bool stopping_ = false;
  bool resizing_ = false;
  std::vector<rendezvous::Event> events_;
  std::set<int> done_, told_;
  std::map<int, Watcher> watchers_;
  std::optional<rendezvous::Failure> suspect_;  // the first that lost a peer
  std::optional<Clock::time_point> verdict_at_;
};

}  // namespace cadre
