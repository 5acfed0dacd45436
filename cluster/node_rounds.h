// NodeRounds: which launchers start a job's ranks together, start after start. The rendezvous'
// logic without its transport, as Gathering is: time is handed in and answers are functions.
//
// As torchrun's, a start takes MIN to MAX nodes. It begins when MAX have come; when all that are
// connected have come and nobody was lost since the last start, or they make as many ranks without
// those; or a last call after MIN came.
// It takes as many nodes, from the lowest number, as make a world that the job can be laid over. A
// launcher that comes while a start runs has no part in that; once no more came for the time of a
// last call, and the world would be larger with it, the start is to make room.
//
// Nodes keep their numbers over starts: one that comes back, or another machine in its place, has
// the number of the one that left.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"

namespace cadre {

class NodeRounds {
 public:
  using Clock = std::chrono::steady_clock;
  using Due = std::vector<std::function<void()>>;  // to be called once no lock is held
  using CheckWorld = std::function<absl::Status(int world_size)>;

  struct Options {
    int min_nodes = 1;
    int max_nodes = 1;
    std::chrono::milliseconds last_call{0};
    CheckWorld check_world;  // null: any will do; quick, since it is called under a lock
  };
  struct Start {
    int64_t generation = 0;
    std::vector<int> nodes;       // that take part, ascending
    std::vector<int> first_rank;  // of each
    int world_size = 0;
    std::string smaller;  // why nodes that came have no part in it; empty: all have
    bool Has(int number) const;
  };
  using Answer = std::function<void(const absl::StatusOr<std::shared_ptr<const Start>>&)>;

  struct Member {
    int number = 0;
    int size = 0;        // how many nodes it takes the job to have at most
    uint64_t claim = 0;  // drawn by each launcher, so that two with one number are told apart
  };

  explicit NodeRounds(Options options) : options_(std::move(options)) {}

  // A launcher is connected, until Leave. kAlreadyExists: another one has its number.
  absl::Status Attend(const Member& member);
  Due Leave(const Member& member, Clock::time_point now);

  struct Call {
    Member member;
    int64_t generation = -1;  // that it is to be in; -1: it has been in none
    int processes = 0;
    std::chrono::milliseconds timeout{};
    uint64_t ticket = 0;  // tells this call from others of the same member
    Answer answer;
  };
  // The first to come for a start sets its time, after which it begins with those that came or
  // fails for them. While one runs, newcomers get that, without a part in it.
  Due Join(Call call, Clock::time_point now);
  // The call with this ticket no longer waits.
  Due Cancel(const Member& member, uint64_t ticket, Clock::time_point now);

  // Whether what a launcher tells of this start counts.
  absl::Status Admit(const Member& member, int64_t generation) const;

  // The start that runs is over; `again`: the next one may begin.
  void End(bool again);
  Due Expire(Clock::time_point now);
  Due Close(const absl::Status& status);
  std::optional<Clock::time_point> NextDeadline() const;

  // A node of the start that runs is to go at its end: false where too few would be left, and then
  // nothing changes.
  bool Release(int number);
  // The start that runs; null between two.
  const Start* running() const { return running_ ? start_.get() : nullptr; }
  // Nodes for which the start that runs is to make room; asked for once.
  std::vector<int> TakeJoining() { return std::exchange(joining_, {}); }

 private:
  struct Node {
    uint64_t claim = 0;
    bool attends = false;
    bool joined = false;   // has been answered with a start
    bool leaving = false;  // comes to no other
    int processes = 0;
    uint64_t ticket = 0;
    Answer answer;  // while it waits
  };
  using Nodes = std::map<int, Node>;

  absl::StatusOr<Node*> Register(const Member& member);
  absl::Status CheckJoin(const Call& call, const Node& node) const;
  // The largest start that nodes of `numbers` make.
  absl::StatusOr<Start> Choose(const std::vector<int>& numbers) const;
  std::vector<int> Waiting() const;
  // That come to the next start, as far as one knows.
  std::vector<int> Staying() const;
  // Begins or fails the next start where it is time to.
  Due Try(Clock::time_point now);
  Due Begin(Start start);
  Due Fail(const absl::Status& status);
  void Grow();
  absl::Status TimedOut(const std::string& reason) const;

  const Options options_;
  Nodes nodes_;  // that are connected
  std::shared_ptr<const Start> start_;
  bool running_ = false;
  bool over_ = false;
  int wanted_ranks_ = 0;  // of the next start, for which no last call is needed
  std::vector<int> joining_;
  std::chrono::milliseconds timeout_{};
  std::optional<Clock::time_point> deadline_;      // of the next start
  std::optional<Clock::time_point> last_call_at_;  // ends
  bool last_call_over_ = false;
  std::optional<Clock::time_point> grow_at_;
};

}  // namespace cadre
