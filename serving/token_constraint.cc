#include "serving/token_constraint.h"

#include <algorithm>

namespace cadre {

TokenConstraint::TokenConstraint(std::shared_ptr<const CompiledGrammar> grammar,
                                 std::span<const int32_t> ends, int64_t vocab)
    : matcher_(std::move(grammar)),
      ends_(ends.begin(), ends.end()),
      vocab_(vocab),
      filled_(matcher_.grammar().trie().mask_words()) {
  next_.allowed.resize(static_cast<size_t>(vocab + 63) / 64);
}

void TokenConstraint::Compute(int32_t token) {
  if (token >= 0) next_.status = matcher_.Accept(token);
  if (next_.status.ok()) next_.status = matcher_.FillMask(filled_);
  if (!next_.status.ok()) return;
  std::vector<uint64_t>& allowed = next_.allowed;
  std::ranges::fill(allowed, 0);
  std::copy_n(filled_.begin(), std::min(filled_.size(), allowed.size()), allowed.begin());
  if (vocab_ % 64 != 0) allowed.back() &= (uint64_t{1} << (vocab_ % 64)) - 1;
  const bool any = std::ranges::any_of(allowed, [](uint64_t word) { return word != 0; });
  next_.ended = !any && matcher_.may_end();
  if (matcher_.may_end()) {
    for (int32_t id : ends_) {
      if (id >= vocab_) continue;
      allowed[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
      next_.ended = false;
    }
  } else if (!any) {
    next_.status = InvalidArgument("no token of the vocabulary continues the text as asked");
  }
}

MaskWorker::~MaskWorker() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  posted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void MaskWorker::Post(std::shared_ptr<TokenConstraint> constraint, int32_t token,
                      std::deque<Job>* queue) {
  {
    std::lock_guard lock(mutex_);
    CADRE_CHECK(constraint->ready_);
    constraint->ready_ = false;
    queue->push_back({std::move(constraint), token});
    while (std::ssize(threads_) < kThreads) threads_.emplace_back(&MaskWorker::Run, this);
  }
  posted_.notify_one();
}

const TokenConstraint::Next& MaskWorker::Wait(const TokenConstraint& constraint) {
  std::unique_lock lock(mutex_);
  // Its sequence runs now.
  const auto first = std::ranges::find_if(
      first_masks_, [&](const Job& job) { return job.constraint.get() == &constraint; });
  if (first != first_masks_.end()) {
    next_masks_.push_back(std::move(*first));
    first_masks_.erase(first);
  }
  done_.wait(lock, [&] { return constraint.ready_; });
  return constraint.next_;
}

void MaskWorker::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    posted_.wait(lock,
                 [this] { return stopping_ || !next_masks_.empty() || !first_masks_.empty(); });
    if (stopping_) return;
    std::deque<Job>& queue = next_masks_.empty() ? first_masks_ : next_masks_;
    const Job job = std::move(queue.front());
    queue.pop_front();
    lock.unlock();
    job.constraint->Compute(job.token);
    lock.lock();
    job.constraint->ready_ = true;
    done_.notify_all();
  }
}

}  // namespace cadre
