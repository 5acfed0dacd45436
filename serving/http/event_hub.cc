#include "serving/http/event_hub.h"

#include <utility>

namespace cadre {

bool AnswerInbox::Put(ChoiceDelta delta) {
  bool fits = true;
  {
    std::lock_guard lock(mutex_);
    if (overflowed_) return false;
    bytes_ += sizeof(ChoiceDelta) + delta.text.size();
    for (const LogprobEntry& entry : delta.logprobs) {
      bytes_ += sizeof(entry) + entry.top.size() * sizeof(TokenLogprob);
    }
    fits = bytes_ <= max_bytes_;
    overflowed_ = !fits;
    if (fits) deltas_.push_back(std::move(delta));
  }
  wake_();
  return fits;
}

std::vector<ChoiceDelta> AnswerInbox::Take() {
  std::lock_guard lock(mutex_);
  bytes_ = 0;
  return std::exchange(deltas_, {});
}

bool AnswerInbox::overflowed() const {
  std::lock_guard lock(mutex_);
  return overflowed_;
}

EventHub::EventHub(EngineClient* engine) : engine_(engine), thread_([this] { Run(); }) {}

EventHub::~EventHub() { Stop(); }

void EventHub::Stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
  // Inboxes hold their connections' executors, which must not outlive the I/O context.
  std::lock_guard lock(routes_mutex_);
  routes_.clear();
}

void EventHub::Add(std::vector<Route> routes) {
  std::lock_guard lock(routes_mutex_);
  for (Route& route : routes) {
    uint64_t id = route.id;
    routes_[id] = std::make_shared<Route>(std::move(route));
  }
}

void EventHub::Remove(const std::vector<uint64_t>& ids) {
  std::lock_guard lock(routes_mutex_);
  for (uint64_t id : ids) routes_.erase(id);
}

void EventHub::Release(const std::vector<uint64_t>& ids) {
  std::lock_guard lock(routes_mutex_);
  for (uint64_t id : ids) {
    auto route = routes_.find(id);
    if (route != routes_.end()) route->second->inbox = nullptr;
  }
}

void EventHub::OnStep(std::vector<TokenEvent> events) {
  {
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    steps_.push_back(std::move(events));
  }
  changed_.notify_one();
}

void EventHub::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !steps_.empty(); });
    if (stopping_) return;
    std::vector<TokenEvent> events = std::move(steps_.front());
    steps_.pop_front();
    lock.unlock();
    for (TokenEvent& event : events) Deliver(std::move(event));
    lock.lock();
  }
}

void EventHub::Deliver(TokenEvent event) {
  uint64_t id = event.request_id;
  std::shared_ptr<Route> route;
  std::shared_ptr<AnswerInbox> inbox;
  bool last = event.finish != FinishReason::kNone;
  {
    std::lock_guard lock(routes_mutex_);
    auto found = routes_.find(id);
    if (found == routes_.end()) return;
    route = found->second;
    inbox = route->inbox;
    if (last) routes_.erase(found);
  }
  // The cancellation of a sequence that a stop string has ended is its regular end.
  if (event.finish == FinishReason::kCancelled && route->decoder->finished()) {
    event.finish = FinishReason::kStop;
  }
  if (route->observe) route->observe(event);
  if (!inbox || route->decoder->finished()) return;
  ChoiceDelta delta = route->decoder->Push(std::move(event));
  delta.choice = route->choice;
  bool cancel = delta.cancel_engine;
  if (!inbox->Put(std::move(delta))) cancel = !last;
  if (cancel) engine_->Cancel(id);
}

}  // namespace cadre
