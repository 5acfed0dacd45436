#include "serving/scheduler.h"

#include <algorithm>

#include "serving/prefix_reuse.h"

namespace cadre {

absl::Status Scheduler::Admissible(int64_t prompt_tokens, const SamplingParams& sampling) const {
  if (prompt_tokens < 1) return InvalidArgument("prompt: 0 tokens, at least 1 is needed");
  const int64_t total = prompt_tokens + sampling.max_tokens;
  if (total > options_.max_context) {
    return InvalidArgument(
        "prompt of {} tokens and max_tokens {} are {} together, over the context of {}",
        prompt_tokens, sampling.max_tokens, total, options_.max_context);
  }
  const int64_t capacity = cache_.blocks() * cache_.block_size();
  if (total > capacity) {
    return InvalidArgument(
        "prompt of {} tokens and max_tokens {} are {} together, over the KV cache of {}",
        prompt_tokens, sampling.max_tokens, total, capacity);
  }
  return absl::OkStatus();
}

void Scheduler::PreemptYoungest() {
  cache_.Free(running_.back()->kv);
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++preemptions_;
}

bool Scheduler::Reserve(size_t index, int64_t tokens) {
  while (!cache_.Extend(running_[index]->kv, running_[index]->kv.stored() + tokens)) {
    CADRE_CHECK(running_.size() > 1 || index > 0, "one sequence does not fit the KV cache");
    const bool itself = index + 1 == running_.size();
    PreemptYoungest();
    if (itself) return false;
  }
  return true;
}

void Scheduler::Admit(double now) {
  if (waiting_.empty() || running() >= options_.max_num_seqs) return;
  Sequence& next = *waiting_.front();
  if (!ReusePrefix(cache_, next, running_)) return;
  // All it knows and its next token must fit at once, or it would push out what already runs. The
  // last token that it may have is never computed.
  const int64_t most = next.prompt_tokens() + std::max(next.request.sampling.max_tokens - 1, 0);
  const int64_t known = std::min(next.known_tokens() + 1, most);
  if (cache_.BlocksNeeded(next.kv, known) > cache_.free_blocks()) return cache_.Free(next.kv);
  if (next.scheduled == 0) {
    next.scheduled = now;
    next.first_event.cached_tokens = static_cast<int>(next.kv.stored());
    prefix_queries_ += next.prompt_tokens();
    prefix_hits_ += next.kv.stored();
  }
  running_.push_back(std::move(waiting_.front()));
  waiting_.pop_front();
}

std::vector<ScheduledChunk> Scheduler::Plan(double now) {
  std::vector<ScheduledChunk> plan;
  const int64_t preempted_before = preemptions_;
  int64_t budget = options_.max_num_batched_tokens;
  auto take = [&](size_t index) {
    Sequence& sequence = *running_[index];
    const int64_t left = sequence.known_tokens() - sequence.kv.stored();
    const int64_t tokens = std::min(left, budget);
    if (tokens == 0 || !Reserve(index, tokens)) return;
    plan.push_back({&sequence, sequence.kv.stored(), tokens});
    budget -= tokens;
  };
  auto decodes = [&](size_t i) {
    return running_[i]->known_tokens() - running_[i]->kv.stored() == 1;
  };
  std::vector<bool> planned(running_.size(), false);
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    if (!decodes(i)) continue;
    planned[i] = true;
    take(i);
  }
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    if (i < planned.size() && planned[i]) continue;
    take(i);
  }
  // A preempted sequence may have been planned before it gave way; it comes back in a later step.
  std::erase_if(plan,
                [](const ScheduledChunk& chunk) { return chunk.sequence->kv.blocks().empty(); });
  if (preemptions_ != preempted_before) return plan;
  while (budget > 0) {
    const int before = running();
    Admit(now);
    if (running() == before) break;
    take(running_.size() - 1);
  }
  return plan;
}

std::unique_ptr<Sequence> Scheduler::Remove(uint64_t id) {
  auto matches = [id](const std::unique_ptr<Sequence>& s) { return s->request.id == id; };
  std::unique_ptr<Sequence> removed;
  if (auto it = std::ranges::find_if(running_, matches); it != running_.end()) {
    removed = std::move(*it);
    running_.erase(it);
  } else if (auto it = std::ranges::find_if(waiting_, matches); it != waiting_.end()) {
    removed = std::move(*it);
    waiting_.erase(it);
  }
  if (removed != nullptr) cache_.Free(removed->kv);
  return removed;
}

std::vector<uint64_t> Scheduler::Ids() const {
  std::vector<uint64_t> ids;
  for (const auto& s : running_) ids.push_back(s->request.id);
  for (const auto& s : waiting_) ids.push_back(s->request.id);
  return ids;
}

}  // namespace cadre
