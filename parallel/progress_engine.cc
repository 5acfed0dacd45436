#include "parallel/progress_engine.h"

#include <algorithm>
#include <atomic>

#include "core/trace.h"

namespace cadre {
namespace {

// Between looks at peers and deadlines; also what a lost wake-up would cost.
constexpr std::chrono::milliseconds kCheckInterval(100);
// The label without its layer.
std::string_view WhatOf(const OperationInfo& info) {
  const std::string_view label = info.label;
  if (info.layer < 0) return label;
  return label.substr(fmt::formatted_size("layer {} ", info.layer));
}

constexpr int64_t kUntraced = -1;  // begun before there was a trace

// More rings than ever come: nothing is in flight.
constexpr uint32_t kNever = 1u << 30;

}  // namespace

struct ProgressEngine::Operation {
  explicit Operation(OperationPlan from)
      : plan(std::move(from)), collective(plan.begin(plan.messages)) {}

  OperationPlan plan;
  Collective collective;
  uint64_t record = 0;
  int64_t began = kUntraced, ended = 0;  // on the trace's clock
  std::chrono::milliseconds timeout{0};
  std::chrono::steady_clock::time_point deadline;
  absl::Status status;
  std::atomic<bool> done = false;
};

class ProgressEngine::EngineWork : public Work {
 public:
  EngineWork(ProgressEngine& engine, std::shared_ptr<Operation> operation)
      : engine_(engine), operation_(std::move(operation)) {}

  absl::Status Wait() override {
    if (done()) return operation_->status;
    engine_.recorder_->SetState(operation_->record, OperationState::kAwaited);
    if (engine_.trace_ == nullptr) return engine_.Wait(*this);
    const int64_t begin = engine_.trace_->Now();
    const absl::Status status = engine_.Wait(*this);
    const OperationInfo& info = operation_->plan.info;
    engine_.trace_->Wait(fmt::format("wait for {}", info.label), begin, engine_.trace_->Now(),
                         Trace::ToJson({{"operation", info.operation}, {"group", info.group}}));
    return status;
  }
  bool done() const override { return operation_->done.load(std::memory_order_acquire); }
  const absl::Status& status() const { return operation_->status; }

 private:
  ProgressEngine& engine_;
  std::shared_ptr<Operation> operation_;
};

ProgressEngine::ProgressEngine(Options options)
    : doorbell_(options.doorbell),
      transports_(std::move(options.transports)),
      recorder_(options.recorder),
      timeout_(options.timeout),
      next_check_(Clock::now() + kCheckInterval),
      thread_([this] { Run(); }) {}

ProgressEngine::~ProgressEngine() {
  {
    Lock lock(mutex_);
    stopping_ = true;
    // Others must not take it for the first who left.
    if (const auto told = failure_.ok() ? Announced() : std::nullopt) FailAll(*told);
    if (failure_.ok()) failure_ = absl::CancelledError("the world has ended");
    EndAfterFailure();
    doorbell_.WakeAt(Seat::kProgressThread, doorbell_.rings());
    doorbell_.Wake(Seat::kProgressThread);
  }
  thread_.join();
  DrawFlights();
}

absl::Status ProgressEngine::status() {
  Lock lock(mutex_);
  return failure_;
}

WorkPtr ProgressEngine::Start(OperationPlan plan) {
  Lock lock(mutex_);
  auto operation = std::make_shared<Operation>(std::move(plan));
  const OperationInfo& info = operation->plan.info;
  operation->record = recorder_->Begin(info.group, info.operation, info.label, info.sequence,
                                       info.bytes, info.peer);
  if (trace_ != nullptr) operation->began = trace_->Now();
  auto work = std::make_shared<EngineWork>(*this, operation);
  if (!failure_.ok()) {
    Finish(operation, failure_);
    return work;
  }
  const std::chrono::milliseconds own = operation->plan.timeout;
  operation->timeout = own.count() > 0 ? own : timeout_;
  operation->deadline = Clock::now() + operation->timeout;
  in_flight_.push_back(std::move(operation));
  Settle(driven_ == nullptr ? Seat::kProgressThread : Seat::kCaller);
  WakeDriverIfDone();
  return work;
}

// Another thread's step may have finished what the driver sleeps for.
void ProgressEngine::WakeDriverIfDone() {
  if (driven_ == nullptr || !driven_->done()) return;
  doorbell_.WakeAt(Seat::kCaller, doorbell_.rings());
  doorbell_.Wake(Seat::kCaller);
}

// Steps until nothing more moves and the seat will be woken by what comes.
void ProgressEngine::Settle(Seat seat) {
  do {
    const uint32_t seen = doorbell_.rings();
    Step();
    EndAfterFailure();
    doorbell_.WakeAt(seat, seen + RingsNeeded());
  } while (!Arm() || doorbell_.Passed(seat));
}

bool ProgressEngine::Arm() {
  if (!failure_.ok() || in_flight_.empty()) return true;
  return std::ranges::all_of(transports_, [](const auto& transport) { return transport->Arm(); });
}

void ProgressEngine::Step() {
  if (!failure_.ok()) return;
  do {
    for (const auto& transport : transports_) {
      if (auto loss = transport->Progress()) return FailAll(*loss);
    }
  } while (StepOperations());
}

// Whether any of them moved, which may have sent messages.
bool ProgressEngine::StepOperations() {
  bool moved = false;
  for (auto it = in_flight_.begin(); it != in_flight_.end();) {
    const std::shared_ptr<Operation> operation = *it;
    moved |= operation->collective.Resume();
    if (operation->collective.done()) {
      it = in_flight_.erase(it);
      Finish(operation, absl::OkStatus());
    } else {
      ++it;
    }
  }
  return moved && !in_flight_.empty();
}

uint32_t ProgressEngine::RingsNeeded() const {
  uint32_t needed = kNever;
  for (const auto& operation : in_flight_) {
    const TransferBatch* awaited = operation->collective.awaited();
    needed = std::min(needed, awaited == nullptr ? 1 : awaited->rings_needed());
  }
  return needed;
}

// What has ended belongs to the trace that it began on.
void ProgressEngine::set_trace(Trace* trace) {
  const std::lock_guard drawing(drawing_);
  std::vector<std::shared_ptr<Operation>> ended;
  Trace* old = nullptr;
  {
    Lock lock(mutex_);
    ended.swap(undrawn_);
    old = std::exchange(trace_, trace);
  }
  for (const auto& operation : ended) DrawFlight(*old, *operation);
}

void ProgressEngine::DrawFlights() {
  const std::lock_guard drawing(drawing_);
  std::vector<std::shared_ptr<Operation>> ended;
  {
    Lock lock(mutex_);
    ended.swap(undrawn_);
  }
  for (const auto& operation : ended) DrawFlight(*trace_, *operation);
}

void ProgressEngine::DrawFlight(Trace& trace, const Operation& operation) {
  const OperationInfo& info = operation.plan.info;
  const std::string_view what = WhatOf(info);
  std::string args = Trace::ToJson({{"operation", info.operation},
                                    {"label", what},
                                    {"layer", info.layer},
                                    {"bytes", info.bytes},
                                    {"group", info.group},
                                    {"ranks", info.ranks}});
  args.pop_back();
  if (info.bucket >= 0) args += fmt::format(",\"bucket\":{}", info.bucket);
  if (!operation.status.ok()) args += ",\"failed\":true";
  trace.Flight(fmt::format("{}: {}", info.group, what), operation.began, operation.ended,
               args + "}");
}

void ProgressEngine::Finish(const std::shared_ptr<Operation>& operation,
                            const absl::Status& status) {
  operation->status = status;
  operation->plan.pinned.clear();
  if (trace_ != nullptr && operation->began != kUntraced) {
    operation->ended = trace_->Now();
    undrawn_.push_back(operation);
  }
  recorder_->SetState(operation->record,
                      status.ok() ? OperationState::kDone : OperationState::kFailed);
  operation->done.store(true, std::memory_order_release);
  if (bystanders_ > 0) finished_.notify_all();
}

void ProgressEngine::Run() {
  Lock lock(mutex_);
  while (!stopping_) {
    if (driven_ != nullptr) {
      doorbell_.WakeAt(Seat::kProgressThread, doorbell_.rings() + kNever);
    } else {
      CheckNow();
      Settle(Seat::kProgressThread);
    }
    const bool draws = !undrawn_.empty();
    lock.unlock();
    if (draws) DrawFlights();
    doorbell_.Sleep(Seat::kProgressThread, kCheckInterval);
    lock.lock();
  }
}

absl::Status ProgressEngine::Wait(EngineWork& work) {
  Lock lock(mutex_);
  while (!work.done()) {
    if (driven_ != nullptr) {
      ++bystanders_;
      finished_.wait(lock);
      --bystanders_;
    } else {
      Drive(work, lock);
    }
  }
  return work.status();
}

void ProgressEngine::Drive(EngineWork& work, Lock& lock) {
  driven_ = &work;
  doorbell_.set_driver(Seat::kCaller);
  while (true) {
    Settle(Seat::kCaller);
    CheckNow();
    if (work.done()) break;
    lock.unlock();
    doorbell_.Sleep(Seat::kCaller, kCheckInterval);
    lock.lock();
  }
  driven_ = nullptr;
  doorbell_.set_driver(Seat::kProgressThread);
  Settle(Seat::kProgressThread);
  // One of them has to drive now.
  if (bystanders_ > 0) finished_.notify_all();
}

void ProgressEngine::CheckNow() {
  const Clock::time_point now = Clock::now();
  if (in_flight_.empty() || !failure_.ok() || now < next_check_) return;
  next_check_ = now + kCheckInterval;
  for (const auto& transport : transports_) {
    if (const auto loss = transport->CheckPeers()) {
      // Who left may have been told of what went wrong first, after this rank's last step.
      FailAll(Announced().value_or(*loss));
      break;
    }
  }
  if (failure_.ok()) CheckDeadlines(now);
  EndAfterFailure();
}

void ProgressEngine::CheckDeadlines(Clock::time_point now) {
  for (const auto& operation : in_flight_) {
    if (now < operation->deadline) continue;
    const OperationInfo& info = operation->plan.info;
    const TransferBatch* awaited = operation->collective.awaited();
    const int peer = awaited == nullptr ? -1 : awaited->waits_for();
    const auto seconds = std::chrono::duration<double>(operation->timeout).count();
    const Messages& messages = operation->plan.messages;
    const bool own = peer == messages.peers[static_cast<size_t>(messages.rank)].rank;
    const std::string text =
        fmt::format("{} '{}' of group {}: rank {} {} within {:g} s", info.operation, info.label,
                    info.group, peer, own ? "was not done with it" : "did not come", seconds);
    for (const auto& transport : transports_) transport->GiveUp({peer, text});
    failure_ = absl::DeadlineExceededError(text);
    return;
  }
}

// The oldest operation that has to do with the lost rank, or the oldest of all.
std::string ProgressEngine::DescribeLoss(const PeerLoss& loss) const {
  if (in_flight_.empty()) return fmt::format("rank {} is lost: {}", loss.peer, loss.reason);
  const auto concerns = [&](const std::shared_ptr<Operation>& operation) {
    return std::ranges::any_of(operation->plan.messages.peers,
                               [&](const Messages::Peer& peer) { return peer.rank == loss.peer; });
  };
  const auto found = std::ranges::find_if(in_flight_, concerns);
  const OperationInfo& info = (found == in_flight_.end() ? in_flight_.front() : *found)->plan.info;
  return fmt::format("rank {} is lost in {} '{}' of group {}: {}", loss.peer, info.operation,
                     info.label, info.group, loss.reason);
}

std::optional<PeerLoss> ProgressEngine::Announced() {
  for (const auto& transport : transports_) {
    auto loss = transport->Progress();
    if (loss && loss->announced) return loss;
  }
  return std::nullopt;
}

void ProgressEngine::FailAll(const PeerLoss& loss) {
  const std::string text = loss.announced ? loss.reason : DescribeLoss(loss);
  for (const auto& transport : transports_) transport->GiveUp({loss.peer, text});
  failure_ = absl::UnavailableError(text);
}

// Only then are the waiters told: they free what messages would have been written to.
void ProgressEngine::EndAfterFailure() {
  if (failure_.ok() || (transports_.empty() && in_flight_.empty())) return;
  transports_.clear();
  for (const auto& operation : in_flight_) {
    operation->collective.Drop();
    Finish(operation, failure_);
  }
  in_flight_.clear();
  WakeDriverIfDone();
}

}  // namespace cadre
