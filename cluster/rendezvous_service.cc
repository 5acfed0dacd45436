#include "cluster/rendezvous_service.h"

#include <algorithm>
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

constexpr std::chrono::seconds kLastWord{1};

absl::Status Closed() { return Unavailable("the rendezvous is closed"); }

absl::Status NoLaunchers() {
  return absl::FailedPreconditionError("this rendezvous has no launchers");
}

NodeRounds::Member ToNode(const Caller& caller) {
  return {.number = caller.number(), .size = caller.size(), .claim = caller.claim()};
}

void Tell(const NodeRounds::Start& start, int node, int64_t restarts,
          rendezvous::JoinReply* reply) {
  reply->set_generation(start.generation);
  reply->set_world_size(start.world_size);
  reply->set_restarts(restarts);
  reply->set_smaller(start.smaller);
  for (size_t i = 0; i < start.nodes.size(); ++i) {
    reply->add_nodes(start.nodes[i]);
    if (start.nodes[i] == node) reply->set_first_rank(start.first_rank[i]);
  }
}

void MoveTo(Gathering::Due* all, Gathering::Due more) {
  all->insert(all->end(), std::make_move_iterator(more.begin()),
              std::make_move_iterator(more.end()));
}

}  // namespace

RendezvousService::RendezvousService(const RendezvousServerOptions& options) : options_(options) {
  if (options_.ranks > 0) ranks_.emplace("rank", options_.generation, options_.ranks);
  if (options_.nodes.max_nodes > 0) nodes_.emplace(options_.nodes);
  timer_ = std::jthread([this](std::stop_token stop) { KeepTime(std::move(stop)); });
}

template <typename Change>
void RendezvousService::Apply(const Change& change) {
  Due due;
  {
    const std::lock_guard lock(mutex_);
    due = change();
    dirty_ = true;
    Settle(&due);
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

grpc::ServerUnaryReactor* RendezvousService::Attend(grpc::CallbackServerContext*,
                                                    const rendezvous::AttendRequest* request,
                                                    rendezvous::AttendReply*) {
  absl::Status status = CheckToken(request->caller());
  if (!status.ok()) return Refuse(status);
  auto* call = new Pending;
  const uint64_t ticket = next_ticket_++;
  const NodeRounds::Member member = ToNode(request->caller());
  call->set_on_cancel([this, member, ticket] {
    Apply([&] {
      Due due;
      const auto attending = attending_.find(ticket);
      if (attending == attending_.end()) return due;
      due.push_back([end = std::move(attending->second.end)] { end(absl::CancelledError("")); });
      attending_.erase(attending);
      Lose(member, &due);
      return due;
    });
  });
  Apply([&]() -> Due {
    status = closed_ ? Closed() : !nodes_ ? NoLaunchers() : nodes_->Attend(member);
    if (!status.ok()) return {[call, status] { call->Answer(status); }};
    attending_.emplace(ticket, Attending{.node = member.number,
                                         .end = [call](const auto& end) { call->Answer(end); }});
    return {};
  });
  return call;
}

void RendezvousService::Lose(const NodeRounds::Member& member, Due* due) {
  const NodeRounds::Start* start = nodes_->running();
  const bool had_ranks = start != nullptr && start->Has(member.number);
  MoveTo(due, nodes_->Leave(member, Clock::now()));
  if (had_ranks) MoveTo(due, events_->Lose(member.number, Clock::now()));
}

grpc::ServerUnaryReactor* RendezvousService::Join(grpc::CallbackServerContext*,
                                                  const rendezvous::JoinRequest* request,
                                                  rendezvous::JoinReply* reply) {
  const absl::Status token = CheckToken(request->caller());
  if (!token.ok()) return Refuse(token);
  auto* call = new Pending;
  const uint64_t ticket = next_ticket_++;
  const NodeRounds::Member member = ToNode(request->caller());
  call->set_on_cancel([this, member, ticket] {
    Apply([&] { return nodes_ ? nodes_->Cancel(member, ticket, Clock::now()) : Due(); });
  });
  const auto answer = [this, call, reply, member](
                          const absl::StatusOr<std::shared_ptr<const NodeRounds::Start>>& start) {
    if (start.ok()) Tell(**start, member.number, restarts_, reply);
    const auto age = std::chrono::ceil<std::chrono::milliseconds>(Clock::now() - began_);
    reply->set_age_ms(age.count());
    call->Answer(start.status());
  };
  Apply([&]() -> Due {
    if (closed_) return {[answer] { answer(Closed()); }};
    if (!nodes_) return {[answer] { answer(NoLaunchers()); }};
    return nodes_->Join({.member = member,
                         .generation = request->caller().generation(),
                         .processes = request->processes(),
                         .timeout = Bounded(request->timeout_ms()),
                         .ticket = ticket,
                         .answer = answer},
                        Clock::now());
  });
  return call;
}

absl::Status RendezvousService::AdmitNode(const Caller& caller) const {
  if (closed_) return Closed();
  if (!nodes_) return NoLaunchers();
  return nodes_->Admit(ToNode(caller), caller.generation());
}

RendezvousService::Due RendezvousService::TakeReport(int node, const Event& event) {
  if (event.kind() != Event::LEAVE) return events_->Report(node, event, Clock::now());
  if (nodes_->Release(node)) return events_->Resize({}, {node});
  Event stop;
  stop.set_kind(Event::STOP);
  return events_->Report(node, stop, Clock::now());
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
    return TakeReport(request->caller().number(), request->event());
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
    Apply([&] { return events_ ? events_->Leave(node, ticket) : Due(); });
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

void RendezvousService::EndStart(Due* due) {
  const Event& outcome = *events_->outcome();
  if (outcome.kind() == Event::FAILED && outcome.restart()) ++restarts_;
  nodes_->End(outcome.restart());
  // Ranks that wait need not wait on.
  if (ranks_) {
    MoveTo(due, ranks_->Close(Unavailable("start {} of the job is over", events_->generation())));
  }
  ranks_.reset();
}

void RendezvousService::Settle(Due* due) {
  const NodeRounds::Start* start = nodes_ ? nodes_->running() : nullptr;
  if (start == nullptr || closed_) return;
  if (!events_ || events_->generation() != start->generation) {
    if (events_) MoveTo(due, events_->Close(Unavailable("that start of the job is over")));
    ranks_.emplace("rank", start->generation, start->world_size);
    events_.emplace(start->generation, static_cast<int>(start->nodes.size()),
                    restarts_ < options_.max_restarts);
  }
  if (const std::vector<int> joining = nodes_->TakeJoining(); !joining.empty()) {
    MoveTo(due, events_->Resize(joining, {}));
  }
  if (events_->outcome() != nullptr) EndStart(due);
}

void RendezvousService::KeepTime(std::stop_token stop) {
  std::unique_lock lock(mutex_);
  while (!stop.stop_requested()) {
    Due due;
    std::optional<Clock::time_point> next;
    const auto look = [&](auto& part) {
      if (!part) return;
      MoveTo(&due, part->Expire(Clock::now()));
      const auto deadline = part->NextDeadline();
      if (deadline && (!next || *deadline < *next)) next = deadline;
    };
    look(ranks_);
    look(nodes_);
    look(events_);
    Settle(&due);
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

bool RendezvousService::AllTold() const {
  if (!events_ || events_->outcome() == nullptr) return true;
  return std::ranges::all_of(attending_,
                             [this](const auto& one) { return events_->Told(one.second.node); });
}

void RendezvousService::Close() {
  {
    // One that was just told of something else has yet to ask what came after that.
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, kLastWord, [this] { return AllTold(); });
  }
  Apply([this] {
    closed_ = true;
    Due due;
    const auto close = [&](auto& part) {
      if (!part) return;
      MoveTo(&due, part->Close(Closed()));
    };
    close(ranks_);
    close(nodes_);
    close(events_);
    for (auto& [ticket, attending] : attending_) {
      due.push_back([end = std::move(attending.end)] { end(Closed()); });
    }
    attending_.clear();
    return due;
  });
}

}  // namespace cadre
