#include "cluster/launcher_link.h"

#include <utility>

namespace cadre {

using rendezvous::Event;

absl::StatusOr<std::unique_ptr<LauncherLink>> LauncherLink::Connect(const RendezvousPeer& peer) {
  std::unique_ptr<LauncherLink> link(new LauncherLink(peer));
  CADRE_ASSIGN_OR_RETURN(auto channel, ConnectRendezvous(peer));
  link->stub_ = rendezvous::Rendezvous::NewStub(channel);
  link->Attend();
  return link;
}

// One call while it is under way. Its context holds the channel.
template <typename Request, typename Reply>
struct LauncherLink::Call {
  grpc::ClientContext context;
  Request request;
  Reply reply;
};

LauncherLink::~LauncherLink() {
  std::unique_lock lock(mutex_);
  ending_ = true;
  // A call that is cancelled may end on this thread.
  const std::map<uint64_t, std::shared_ptr<grpc::ClientContext>> calls = calls_;
  lock.unlock();
  for (const auto& [ticket, context] : calls) context->TryCancel();
  lock.lock();
  idle_.wait(lock, [this] { return under_way_ == 0; });
}

template <typename Request, typename Reply>
LauncherLink::Call<Request, Reply>* LauncherLink::Begin(uint64_t* ticket) {
  auto call = std::make_shared<Call<Request, Reply>>();
  const std::lock_guard lock(mutex_);
  if (ending_) return nullptr;
  *ticket = next_ticket_++;
  ++under_way_;
  calls_.emplace(*ticket, std::shared_ptr<grpc::ClientContext>(call, &call->context));
  return call.get();
}

// The call goes before this link may: its share of the channel must not be the last one, which
// would end gRPC's threads for callbacks, and this may be one of them.
void LauncherLink::End(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  auto call = calls_.extract(ticket);
  lock.unlock();
  call = {};
  lock.lock();
  --under_way_;
  idle_.notify_all();
}

rendezvous::Caller LauncherLink::CallerOf(int64_t generation) const {
  rendezvous::Caller caller = caller_;
  caller.set_generation(generation);
  return caller;
}

void LauncherLink::Attend() {
  uint64_t ticket;
  auto* const call = Begin<rendezvous::AttendRequest, rendezvous::AttendReply>(&ticket);
  if (call == nullptr) return;
  *call->request.mutable_caller() = caller_;
  // Where it is refused, Join is, too.
  stub_->async()->Attend(&call->context, &call->request, &call->reply,
                         [this, ticket](const grpc::Status&) { End(ticket); });
}

absl::StatusOr<rendezvous::JoinReply> LauncherLink::Join(int64_t generation, int processes) {
  rendezvous::JoinRequest request;
  *request.mutable_caller() = CallerOf(generation);
  request.set_processes(processes);
  request.set_timeout_ms(peer_.timeout.count());
  rendezvous::JoinReply reply;
  grpc::ClientContext context;
  context.set_deadline(CallDeadline(peer_));
  const grpc::Status status = stub_->Join(&context, request, &reply);
  if (!status.ok()) return CallError(peer_, status);
  return reply;
}

void LauncherLink::WatchFrom(int64_t generation, int number, OnEvent on_event) {
  uint64_t ticket;
  auto* const call = Begin<rendezvous::WatchRequest, Event>(&ticket);
  if (call == nullptr) return;
  *call->request.mutable_caller() = CallerOf(generation);
  call->request.set_number(number);
  stub_->async()->Watch(
      &call->context, &call->request, &call->reply,
      [this, ticket, generation, number, event = &call->reply,
       on_event = std::move(on_event)](const grpc::Status& status) {
        if (!status.ok()) {
          event->set_kind(Event::FAILED);
          const bool out = status.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
          rendezvous::Failure& failure = *event->mutable_failure();
          failure.set_kind(out ? rendezvous::Failure::LEFT_OUT
                               : rendezvous::Failure::LAUNCHER_GONE);
          failure.set_rank(-1);
          if (out) failure.set_node(peer_.number);
        }
        on_event(*event);
        const bool over = event->kind() == Event::DONE || event->kind() == Event::FAILED;
        if (!over) WatchFrom(generation, number + 1, on_event);
        End(ticket);
      });
}

void LauncherLink::Report(int64_t generation, const Event& event) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(reporting_, true)) {
      reports_.emplace_back(generation, event);
      return;
    }
  }
  SendReport(generation, event);
}

void LauncherLink::SendNextReport() {
  std::pair<int64_t, Event> next;
  {
    const std::lock_guard lock(mutex_);
    reporting_ = !reports_.empty();
    if (!reporting_) return;
    next = std::move(reports_.front());
    reports_.pop_front();
  }
  SendReport(next.first, next.second);
}

void LauncherLink::SendReport(int64_t generation, const Event& event) {
  uint64_t ticket;
  auto* const call = Begin<rendezvous::ReportRequest, rendezvous::ReportReply>(&ticket);
  if (call == nullptr) return;
  call->context.set_deadline(CallDeadline(peer_));
  *call->request.mutable_caller() = CallerOf(generation);
  *call->request.mutable_event() = event;
  // Where it does not arrive, Watch breaks, too.
  stub_->async()->Report(&call->context, &call->request, &call->reply,
                         [this, ticket](const grpc::Status&) {
                           SendNextReport();
                           End(ticket);
                         });
}

}  // namespace cadre
