#include "cluster/rendezvous_service.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "cluster/grpc_status.h"

namespace cadre {
namespace {

using rendezvous::Caller;
using rendezvous::Event;
using Clock = Gathering::Clock;

// One call that waits. It ends itself when gRPC is through with it.
class Pending final : public grpc::ServerUnaryReactor {
 public:
  void set_on_cancel(std::function<void()> on_cancel) { on_cancel_ = std::move(on_cancel); }
  void Answer(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnCancel() override {
    if (on_cancel_) on_cancel_();
  }
  void OnDone() override { delete this; }

 private:
  std::function<void()> on_cancel_;
};

grpc::ServerUnaryReactor* Refuse(const absl::Status& status) {
  auto* call = new Pending;
  call->Answer(status);
  return call;
}

Gathering::Member ToMember(const Caller& caller) {
  return {.generation = caller.generation(),
          .number = caller.number(),
          .size = caller.size(),
          .claim = caller.claim()};
}

std::chrono::milliseconds Bounded(int64_t timeout_ms) {
  constexpr int64_t kDay = 24 * 3600 * 1000;
  return std::chrono::milliseconds(std::clamp<int64_t>(timeout_ms, 1, kDay));
}

absl::Status Closed() { return Unavailable("the rendezvous is closed"); }

constexpr char kNodesKey[] = "launchers";

}  // namespace

RendezvousService::RendezvousService(const RendezvousServerOptions& options) : options_(options) {
  if (options_.ranks > 0) ranks_.emplace("rank", options_.generation, options_.ranks);
  if (options_.nodes > 0) nodes_.emplace("node", options_.generation, options_.nodes);
  timer_ = std::jthread([this](std::stop_token stop) { KeepTime(std::move(stop)); });
}

template <typename Change>
void RendezvousService::Apply(const Change& change) {
  Due due;
  {
    const std::lock_guard lock(mutex_);
    due = change();
    dirty_ = true;
    EndRanks(&due);
  }
  changed_.notify_all();
  for (const auto& answer : due) answer();
}

// The time does not tell how much of a guess was right.
absl::Status RendezvousService::CheckToken(const Caller& caller) const {
  const std::string &own = options_.token, &theirs = caller.token();
  unsigned difference = own.size() == theirs.size() ? 0 : 1;
  for (size_t i = 0; i < theirs.size() && !own.empty(); ++i) {
    difference |= static_cast<unsigned char>(own[i % own.size()] ^ theirs[i]);
  }
  if (difference == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(
      "the job's token is another one (is an older job still running there, or does "
      "CADRE_JOB_TOKEN differ between nodes?)");
}

grpc::ServerUnaryReactor* RendezvousService::AllGather(grpc::CallbackServerContext*,
                                                       const rendezvous::AllGatherRequest* request,
                                                       rendezvous::AllGatherReply* reply) {
  const absl::Status token = CheckToken(request->caller());
  if (!token.ok()) return Refuse(token);
  auto* call = new Pending;
  const uint64_t ticket = next_ticket_++;
  call->set_on_cancel([this, key = request->key(), number = request->caller().number(), ticket] {
    Apply([&] { return ranks_ ? ranks_->Leave(key, number, ticket) : Due(); });
  });
  const auto answer = [call, reply](const absl::StatusOr<Gathering::Values>& values) {
    if (values.ok()) {
      for (const std::string& value : **values) reply->add_values(value);
    }
    call->Answer(values.status());
  };
  Apply([&]() -> Due {
    if (closed_) return {[answer] { answer(Closed()); }};
    if (!ranks_) {
      return {[answer] { answer(absl::FailedPreconditionError("no start of the job runs now")); }};
    }
    return ranks_->Add({.member = ToMember(request->caller()),
                        .key = request->key(),
                        .value = request->value(),
                        .timeout = Bounded(request->timeout_ms()),
                        .ticket = ticket,
                        .answer = answer},
                       Clock::now());
  });
  return call;
}

absl::StatusOr<RendezvousService::Start> RendezvousService::Begin(
    int64_t generation, const std::vector<std::string>& processes) {
  Start start;
  for (size_t node = 0; node < processes.size(); ++node) {
    int count = 0;
    const char* end = processes[node].data() + processes[node].size();
    if (std::from_chars(processes[node].data(), end, count).ptr != end || count < 1 ||
        count > Gathering::kMaxMembers - start.world_size) {
      return InvalidArgument("node {}: {} ranks there; all nodes together may have 1 to {}", node,
                             processes[node], Gathering::kMaxMembers);
    }
    start.first_rank.push_back(start.world_size);
    start.world_size += count;
  }
  const std::lock_guard lock(mutex_);
  if (!events_ || events_->generation() != generation) {
    const int nodes = static_cast<int>(processes.size());
    started_ = std::move(nodes_);
    nodes_.emplace("node", generation + 1, nodes);
    ranks_.emplace("rank", generation, start.world_size);
    events_.emplace(generation, nodes, options_.max_restarts);
  }
  return start;
}

grpc::ServerUnaryReactor* RendezvousService::Join(grpc::CallbackServerContext*,
                                                  const rendezvous::JoinRequest* request,
                                                  rendezvous::JoinReply* reply) {
  const absl::Status token = CheckToken(request->caller());
  if (!token.ok()) return Refuse(token);
  auto* call = new Pending;
  const uint64_t ticket = next_ticket_++;
  const Gathering::Member member = ToMember(request->caller());
  call->set_on_cancel([this, number = member.number, ticket] {
    Apply([&] { return nodes_ ? nodes_->Leave(kNodesKey, number, ticket) : Due(); });
  });
  const auto answer = [this, call, reply,
                       member](const absl::StatusOr<Gathering::Values>& processes) {
    if (!processes.ok()) return call->Answer(processes.status());
    const absl::StatusOr<Start> start = Begin(member.generation, **processes);
    if (start.ok()) {
      reply->set_first_rank(start->first_rank[static_cast<size_t>(member.number)]);
      reply->set_world_size(start->world_size);
    }
    call->Answer(start.status());
  };
  Apply([&]() -> Due {
    if (closed_) return {[answer] { answer(Closed()); }};
    if (!nodes_) {
      return {
          [answer] { answer(absl::FailedPreconditionError("this rendezvous has no launchers")); }};
    }
    return nodes_->Add({.member = member,
                        .key = kNodesKey,
                        .value = std::to_string(request->processes()),
                        .timeout = Bounded(request->timeout_ms()),
                        .ticket = ticket,
                        .answer = answer},
                       Clock::now());
  });
  return call;
}

absl::Status RendezvousService::AdmitNode(const Caller& caller) {
  if (closed_) return Closed();
  if (!started_) {
    return absl::FailedPreconditionError("no start of the job runs now");
  }
  return started_->Admit(ToMember(caller));
}

grpc::ServerUnaryReactor* RendezvousService::Report(grpc::CallbackServerContext*,
                                                    const rendezvous::ReportRequest* request,
                                                    rendezvous::ReportReply*) {
  absl::Status status = CheckToken(request->caller());
  if (!status.ok()) return Refuse(status);
  Apply([&]() -> Due {
    // What is told of a start that is over already comes too late to matter.
    if (events_ && request->caller().generation() < events_->generation()) return {};
    status = AdmitNode(request->caller());
    if (!status.ok()) return {};
    return events_->Report(request->caller().number(), request->event(), Clock::now());
  });
  return Refuse(status);
}

grpc::ServerUnaryReactor* RendezvousService::Watch(grpc::CallbackServerContext*,
                                                   const rendezvous::WatchRequest* request,
                                                   Event* reply) {
  const absl::Status token = CheckToken(request->caller());
  if (!token.ok()) return Refuse(token);
  auto* call = new Pending;
  const uint64_t ticket = next_ticket_++;
  call->set_on_cancel([this, node = request->caller().number(), ticket] {
    Apply([&] { return events_ ? events_->Leave(node, ticket, Clock::now()) : Due(); });
  });
  Apply([&]() -> Due {
    const absl::Status status = AdmitNode(request->caller());
    if (!status.ok()) return {[call, status] { call->Answer(status); }};
    return events_->Watch(request->caller().number(), request->number(), ticket,
                          [call, reply](const absl::StatusOr<Event>& event) {
                            if (event.ok()) *reply = *event;
                            call->Answer(event.status());
                          });
  });
  return call;
}

void RendezvousService::EndRanks(Due* due) {
  const Event* outcome = events_ ? events_->outcome() : nullptr;
  if (outcome == nullptr || !ranks_ || ranks_->generation() != events_->generation()) return;
  Due closed = ranks_->Close(Unavailable("start {} of the job is over", events_->generation()));
  due->insert(due->end(), closed.begin(), closed.end());
  ranks_.reset();
}

void RendezvousService::KeepTime(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    Due due;
    std::optional<Clock::time_point> next;
    const auto look = [&](auto& part) {
      if (!part) return;
      auto ended = part->Expire(Clock::now());
      due.insert(due.end(), ended.begin(), ended.end());
      const auto deadline = part->NextDeadline();
      if (deadline && (!next || *deadline < *next)) next = deadline;
    };
    look(ranks_);
    look(nodes_);
    look(events_);
    EndRanks(&due);
    if (!due.empty()) {
      lock.unlock();
      for (const auto& answer : due) answer();
      lock.lock();
      continue;
    }
    dirty_ = false;
    const auto dirty = [this] { return dirty_; };
    if (next) {
      changed_.wait_until(lock, stop, *next, dirty);
    } else {
      changed_.wait(lock, stop, dirty);
    }
  }
}

void RendezvousService::Close() {
  Apply([this] {
    closed_ = true;
    Due due;
    const auto close = [&](auto& part) {
      if (!part) return;
      auto ended = part->Close(Closed());
      due.insert(due.end(), ended.begin(), ended.end());
    };
    close(ranks_);
    close(nodes_);
    close(events_);
    return due;
  });
}

}  // namespace cadre
