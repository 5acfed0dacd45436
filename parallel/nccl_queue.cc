#include "parallel/nccl_queue.h"

#include <algorithm>
#include <chrono>

namespace cadre {
namespace {

// Between looks at NCCL's own errors while something runs.
constexpr std::chrono::milliseconds kCheckInterval(100);
// Between questions whether a call is through: NCCL tells of it in no other way.
constexpr std::chrono::microseconds kAskInterval(20);
// How long peers may take to end a link as well.
constexpr std::chrono::seconds kEndWithin(1);

}  // namespace

// What a device may call long after the queue is gone.
class NcclQueue::Bell {
 public:
  explicit Bell(std::function<void()> ring) : ring_(std::move(ring)) {}
  void Ring() {
    std::lock_guard lock(mutex_);
    if (ring_) ring_();
  }
  void Silence() {
    std::lock_guard lock(mutex_);
    ring_ = nullptr;
  }

 private:
  std::mutex mutex_;
  std::function<void()> ring_;
};

struct NcclQueue::Link {
  std::unique_ptr<NcclLink> nccl;  // the thread's
  struct Opening {
    NcclId id;
    NcclPlace place;
  };
  std::optional<Opening> opening;
  bool opened = false;
  bool ending = false;
  std::optional<std::chrono::steady_clock::time_point> end_by;  // once nobody has it any more
  uint32_t next = 0;                                            // to be launched
  std::map<uint32_t, NcclOperationPtr> waiting;
  NcclOperationPtr launching;
  std::deque<NcclOperationPtr> running;  // as launched, which is as they end
};

NcclQueue::NcclQueue(std::shared_ptr<NcclDevice> device, int rank, std::function<void()> ring)
    : device_(std::move(device)),
      rank_(rank),
      bell_(std::make_shared<Bell>(std::move(ring))),
      thread_([this] { Run(); }) {}

NcclQueue::~NcclQueue() { Shutdown(); }

NcclQueue::LinkPtr NcclQueue::NewLink() {
  Lock lock(mutex_);
  return links_.emplace_back(std::make_shared<Link>());
}

void NcclQueue::Open(const LinkPtr& link, const NcclId& id, NcclPlace place) {
  Lock lock(mutex_);
  if (link->opened || link->opening) return;
  link->opening = {id, place};
  changed_ = true;
  work_.notify_one();
}

void NcclQueue::Launch(const LinkPtr& link, NcclOperationPtr operation, Transfer* transfer) {
  Lock lock(mutex_);
  operation->transfer = transfer;
  const uint32_t number = operation->number;
  link->waiting.emplace(number, std::move(operation));
  changed_ = true;
  work_.notify_one();
}

bool NcclQueue::AwaitLaunch(const NcclOperation& operation) {
  Lock lock(mutex_);
  launched_.wait(lock, [&] { return operation.launched || ended_; });
  return !ended_;
}

bool NcclQueue::launched(const NcclOperation& operation) {
  Lock lock(mutex_);
  return operation.launched;
}

void NcclQueue::Reap() {
  Lock lock(mutex_);
  changed_ = true;
  work_.notify_one();
}

std::optional<PeerLoss> NcclQueue::Progress() {
  Lock lock(mutex_);
  for (const LinkPtr& link : links_) {
    while (!loss_ && !link->running.empty()) {
      const NcclOperation& oldest = *link->running.front();
      const absl::StatusOr<bool> reached = device_->Reached(*oldest.event);
      if (!reached.ok()) Fail(*link, reached.status());
      if (!reached.ok() || !*reached) break;
      oldest.transfer->done = true;
      link->running.pop_front();
    }
  }
  return loss_;
}

// Names the oldest operation that the link has.
void NcclQueue::Fail(const Link& link, const absl::Status& status) {
  if (loss_) return;
  const NcclOperation* oldest = nullptr;
  if (!link.running.empty()) {
    oldest = link.running.front().get();
  } else if (link.launching != nullptr) {
    oldest = link.launching.get();
  } else if (!link.waiting.empty()) {
    oldest = link.waiting.begin()->second.get();
  }
  loss_ = PeerLoss{
      .peer = rank_,
      .reason = fmt::format("{} failed on the GPU of rank {}: {}",
                            oldest == nullptr ? "NCCL" : oldest->what, rank_, Message(status)),
      .announced = true};
  bell_->Ring();
}

bool NcclQueue::Idle(const Link& link) {
  return link.running.empty() && link.waiting.empty() && link.launching == nullptr;
}

bool NcclQueue::AnyRunning() const {
  return std::ranges::any_of(links_, [](const LinkPtr& link) { return !link->running.empty(); });
}

void NcclQueue::Run() {
  Lock lock(mutex_);
  while (!stopping_) {
    changed_ = false;
    bool busy = EndDropped(lock);
    // Links join at the end and leave by this thread alone, so the walk survives the lock's gaps.
    for (auto it = links_.begin(); it != links_.end() && !stopping_ && !loss_; ++it) {
      busy |= Step(**it, lock);
    }
    if (stopping_ || changed_) continue;
    const auto woken = [this] { return changed_ || stopping_; };
    if (busy && !loss_) {
      work_.wait_for(lock, kAskInterval, woken);
    } else if (AnyRunning() && !loss_) {
      work_.wait_for(lock, kCheckInterval, woken);
    } else {
      work_.wait(lock, woken);
    }
  }
  EndAll(lock);
}

// Whether it is worth asking again soon.
bool NcclQueue::Step(Link& link, Lock& lock) {
  if (link.end_by) return false;
  if (link.nccl == nullptr) return link.opening && OpenLink(link, lock);
  lock.unlock();
  const absl::StatusOr<bool> settled = link.nccl->Settled();
  lock.lock();
  if (!settled.ok()) {
    Fail(link, settled.status());
    return false;
  }
  if (!*settled) return true;
  link.opened = true;
  return link.launching != nullptr ? FinishLaunch(link, lock) : BeginLaunch(link, lock);
}

bool NcclQueue::OpenLink(Link& link, Lock& lock) {
  const Link::Opening opening = *link.opening;
  lock.unlock();
  absl::StatusOr<std::unique_ptr<NcclLink>> opened = device_->Open(opening.id, opening.place);
  lock.lock();
  if (opened.ok()) {
    link.nccl = std::move(*opened);
  } else {
    Fail(link, opened.status());
  }
  return opened.ok();
}

bool NcclQueue::BeginLaunch(Link& link, Lock& lock) {
  const auto next = link.waiting.find(link.next);
  if (next == link.waiting.end()) return false;
  ++link.next;
  link.launching = std::move(next->second);
  link.waiting.erase(next);
  const NcclOperationPtr operation = link.launching;
  lock.unlock();
  absl::Status status = operation->status;
  if (status.ok()) status = link.nccl->Launch(operation->calls, *operation->event);
  lock.lock();
  if (!status.ok()) Fail(link, status);
  return status.ok();
}

bool NcclQueue::FinishLaunch(Link& link, Lock& lock) {
  const NcclOperationPtr operation = link.launching;
  lock.unlock();
  absl::Status status = link.nccl->Mark(*operation->event);
  lock.lock();
  if (status.ok()) {
    link.launching = nullptr;
    link.running.push_back(operation);
    operation->launched = true;
    launched_.notify_all();
    // Only now, when Progress sees it.
    lock.unlock();
    status = link.nccl->NotifyAt(*operation->event, [bell = bell_] { bell->Ring(); });
    lock.lock();
  }
  if (!status.ok()) Fail(link, status);
  return status.ok();
}

// Whether one of them has not ended yet.
bool NcclQueue::EndDropped(Lock& lock) {
  bool busy = false;
  for (auto it = links_.begin(); it != links_.end();) {
    const auto here = it++;
    // Nobody else can come to have it.
    if (here->use_count() > 1 || !Idle(**here)) continue;
    if (EndLink(**here, lock)) {
      links_.erase(here);
    } else {
      busy = true;
    }
  }
  return busy;
}

// Whether it has ended. Others go on meanwhile: peers may be late.
bool NcclQueue::EndLink(Link& link, Lock& lock) {
  if (link.nccl == nullptr) return true;
  const auto now = std::chrono::steady_clock::now();
  if (!link.end_by) link.end_by = now + kEndWithin;
  lock.unlock();
  absl::StatusOr<bool> settled = link.nccl->Settled();
  bool ended = false;
  if (settled.ok() && *settled) {
    ended = std::exchange(link.ending, true);
    if (!ended) settled = link.nccl->End();
  }
  if (!ended && (!settled.ok() || now > *link.end_by)) {
    link.nccl->Abort();
    ended = true;
  }
  if (ended) link.nccl = nullptr;
  lock.lock();
  return ended;
}

void NcclQueue::EndAll(Lock& lock) {
  for (const LinkPtr& link : links_) {
    if (link->nccl == nullptr || (!gave_up_ && Done(*link))) continue;
    lock.unlock();
    link->nccl->Abort();
    link->nccl = nullptr;
    lock.lock();
  }
  // In each round all of them: peers may end theirs in another order.
  for (bool busy = true; busy;) {
    busy = false;
    for (const LinkPtr& link : links_) busy |= !EndLink(*link, lock);
    if (busy) work_.wait_for(lock, kAskInterval);
  }
}

// Progress may not have seen it yet.
bool NcclQueue::Done(const Link& link) {
  if (!link.waiting.empty() || link.launching != nullptr) return false;
  return std::ranges::all_of(link.running, [this](const NcclOperationPtr& operation) {
    const absl::StatusOr<bool> reached = device_->Reached(*operation->event);
    return reached.ok() && *reached;
  });
}

void NcclQueue::GiveUp() {
  Lock lock(mutex_);
  gave_up_ = true;
}

void NcclQueue::Shutdown() {
  {
    Lock lock(mutex_);
    if (std::exchange(stopping_, true)) return;
    work_.notify_one();
  }
  thread_.join();
  bell_->Silence();
  Lock lock(mutex_);
  ended_ = true;
  launched_.notify_all();
}

void NcclTransport::Send(int, uint64_t, std::span<const std::byte>, Transfer*) {
  CADRE_CHECK(false, "no messages travel by NCCL");
}

void NcclTransport::Receive(int, uint64_t, std::span<std::byte>, Transfer*) {
  CADRE_CHECK(false, "no messages travel by NCCL");
}

}  // namespace cadre
