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

LauncherLink::~LauncherLink() {
  std::unique_lock lock(mutex_);
  ending_ = true;
  // A call that is cancelled may end on this thread.
  const std::set<std::shared_ptr<grpc::ClientContext>> calls = calls_;
  lock.unlock();
  for (const auto& call : calls) call->TryCancel();
  lock.lock();
  idle_.wait(lock, [this] { return calls_.empty(); });
}

bool LauncherLink::Begin(const std::shared_ptr<grpc::ClientContext>& context) {
  const std::lock_guard lock(mutex_);
  if (ending_) return false;
  calls_.insert(context);
  return true;
}

void LauncherLink::End(const std::shared_ptr<grpc::ClientContext>& context) {
  const std::lock_guard lock(mutex_);
  calls_.erase(context);
  idle_.notify_all();
}

rendezvous::Caller LauncherLink::CallerOf(int64_t generation) const {
  rendezvous::Caller caller = caller_;
  caller.set_generation(generation);
  return caller;
}

void LauncherLink::Attend() {
  struct Call {
    grpc::ClientContext context;
    rendezvous::AttendRequest request;
    rendezvous::AttendReply reply;
  };
  auto call = std::make_shared<Call>();
  const std::shared_ptr<grpc::ClientContext> context(call, &call->context);
  if (!Begin(context)) return;
  *call->request.mutable_caller() = caller_;
  // Where it is refused, Join is, too.
  stub_->async()->Attend(&call->context, &call->request, &call->reply,
                         [this, call](const grpc::Status&) {
                           End(std::shared_ptr<grpc::ClientContext>(call, &call->context));
                         });
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
  struct Call {
    grpc::ClientContext context;
    rendezvous::WatchRequest request;
    Event event;
  };
  auto call = std::make_shared<Call>();
  const std::shared_ptr<grpc::ClientContext> context(call, &call->context);
  if (!Begin(context)) return;
  *call->request.mutable_caller() = CallerOf(generation);
  call->request.set_number(number);
  stub_->async()->Watch(
      &call->context, &call->request, &call->event,
      [this, call, generation, number, on_event = std::move(on_event)](const grpc::Status& status) {
        if (!status.ok()) {
          call->event.set_kind(Event::FAILED);
          const bool out = status.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
          rendezvous::Failure& failure = *call->event.mutable_failure();
          failure.set_kind(out ? rendezvous::Failure::LEFT_OUT
                               : rendezvous::Failure::LAUNCHER_GONE);
          failure.set_rank(-1);
          if (out) failure.set_node(peer_.number);
        }
        on_event(call->event);
        const bool over = call->event.kind() == Event::DONE || call->event.kind() == Event::FAILED;
        if (!over) WatchFrom(generation, number + 1, on_event);
        End(std::shared_ptr<grpc::ClientContext>(call, &call->context));
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
  struct Call {
    grpc::ClientContext context;
    rendezvous::ReportRequest request;
    rendezvous::ReportReply reply;
  };
  auto call = std::make_shared<Call>();
  const std::shared_ptr<grpc::ClientContext> context(call, &call->context);
  if (!Begin(context)) return;
  call->context.set_deadline(CallDeadline(peer_));
  *call->request.mutable_caller() = CallerOf(generation);
  *call->request.mutable_event() = event;
  // Where it does not arrive, Watch breaks, too.
  stub_->async()->Report(&call->context, &call->request, &call->reply,
                         [this, call](const grpc::Status&) {
                           SendNextReport();
                           End(std::shared_ptr<grpc::ClientContext>(call, &call->context));
                         });
}

}  // namespace cadre
