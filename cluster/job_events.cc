#include "cluster/job_events.h"

#include <algorithm>
#include <csignal>
#include <utility>

#include "cluster/rank_environment.h"

namespace cadre {
namespace {

using rendezvous::Event;
using rendezvous::Failure;

// Others show it on their terminals.
void Clean(std::string* text) {
  if (text->size() > JobEvents::kMaxErrorBytes) text->resize(JobEvents::kMaxErrorBytes);
  std::replace_if(
      text->begin(), text->end(), [](char c) { return (c >= 0 && c < ' ') || c == 0x7f; }, '?');
}

}  // namespace

const Event* JobEvents::outcome() const {
  const bool over = !events_.empty() && (events_.back().kind() == Event::DONE ||
                                         events_.back().kind() == Event::FAILED);
  return over ? &events_.back() : nullptr;
}

JobEvents::Due JobEvents::Report(int node, const Event& event, Clock::time_point now) {
  if (outcome() != nullptr) return {};
  switch (event.kind()) {
    case Event::DONE: {
      done_.insert(node);
      if (static_cast<int>(done_.size()) < nodes_) return {};
      Event done;
      done.set_kind(Event::DONE);
      done.set_restart(resizing_ && !stopping_);
      return Append(done);
    }
    case Event::STOP: {
      if (std::exchange(stopping_, true)) return {};
      return Append(event);
    }
    case Event::STALLED: {
      if (events_.size() >= kMaxEvents) return {};
      Event stalled;
      stalled.set_kind(Event::STALLED);
      stalled.set_node(node);
      stalled.set_stalled(event.stalled());
      Clean(stalled.mutable_stalled());
      return Append(stalled);
    }
    case Event::FAILED: {
      Failure failure = event.failure();
      failure.set_node(node);
      Clean(failure.mutable_last_error());
      return Fail(failure, now);
    }
    default:
      return {};
  }
}

JobEvents::Due JobEvents::Fail(const Failure& failure, Clock::time_point now) {
  // Ranks that were asked to end before they could take the signal.
  const bool asked = failure.kind() == Failure::KILLED && failure.code() == SIGTERM;
  if (resizing_ && !stopping_ && (asked || failure.peer_lost())) {
    Event done;
    done.set_kind(Event::DONE);
    done.set_restart(true);
    return Append(done);
  }
  if (!failure.peer_lost()) return Judge(failure);
  if (!suspect_) {
    suspect_ = failure;
    verdict_at_ = now + kWaitForCulprit;
  }
  return {};
}

JobEvents::Due JobEvents::Judge(const Failure& failure) {
  verdict_at_.reset();
  Event event;
  event.set_kind(Event::FAILED);
  *event.mutable_failure() = failure;
  const bool hopeless =
      failure.kind() == Failure::EXITED &&
      (failure.code() == kUsageExitCode || failure.code() == kTrainingStoppedExitCode);
  event.set_restart(may_restart_ && !stopping_ && !hopeless);
  return Append(event);
}

JobEvents::Due JobEvents::Append(const Event& event) {
  events_.push_back(event);
  Due due;
  for (auto watcher = watchers_.begin(); watcher != watchers_.end();) {
    const auto next = std::next(watcher);
    if (watcher->second.number < static_cast<int>(events_.size())) {
      if (outcome() != nullptr) told_.insert(watcher->first);
      due.push_back(
          [answer = std::move(watcher->second.answer),
           seen = events_[static_cast<size_t>(watcher->second.number)]] { answer(seen); });
      watchers_.erase(watcher);
    }
    watcher = next;
  }
  return due;
}

JobEvents::Due JobEvents::Watch(int node, int number, uint64_t ticket, Answer answer) {
  if (number < 0 || number > static_cast<int>(events_.size())) {
    return {[answer, number] { answer(InvalidArgument("event {}: there is none", number)); }};
  }
  if (number < static_cast<int>(events_.size())) {
    if (outcome() != nullptr && number + 1 == static_cast<int>(events_.size())) told_.insert(node);
    return {[answer, seen = events_[static_cast<size_t>(number)]] { answer(seen); }};
  }
  Due due;
  Watcher& watcher = watchers_[node];
  if (watcher.answer) {
    due.push_back([old = std::move(watcher.answer)] {
      old(absl::AbortedError("another call of this node watches now"));
    });
  }
  watcher = {.number = number, .ticket = ticket, .answer = std::move(answer)};
  return due;
}

JobEvents::Due JobEvents::Leave(int node, uint64_t ticket) {
  const auto watcher = watchers_.find(node);
  if (watcher == watchers_.end() || watcher->second.ticket != ticket) return {};
  Due due = {[answer = std::move(watcher->second.answer)] { answer(absl::CancelledError("")); }};
  watchers_.erase(watcher);
  return due;
}

JobEvents::Due JobEvents::Lose(int node, Clock::time_point now) {
  if (outcome() != nullptr || done_.contains(node)) return {};
  Failure failure;
  failure.set_node(node);
  failure.set_rank(-1);
  failure.set_kind(Failure::LAUNCHER_GONE);
  return Fail(failure, now);
}

JobEvents::Due JobEvents::Resize(const std::vector<int>& joining, const std::vector<int>& leaving) {
  if (outcome() != nullptr || stopping_ || verdict_at_ || !done_.empty()) return {};
  if (std::exchange(resizing_, true)) return {};
  Event event;
  event.set_kind(Event::RESIZE);
  event.mutable_joining()->Add(joining.begin(), joining.end());
  event.mutable_leaving()->Add(leaving.begin(), leaving.end());
  return Append(event);
}

JobEvents::Due JobEvents::Expire(Clock::time_point now) {
  if (!verdict_at_ || now < *verdict_at_) return {};
  return Judge(*suspect_);
}

JobEvents::Due JobEvents::Close(const absl::Status& status) {
  Due due;
  for (auto& [node, watcher] : watchers_) {
    due.push_back([answer = std::move(watcher.answer), status] { answer(status); });
  }
  watchers_.clear();
  return due;
}

}  // namespace cadre
