#include "serving/scheduler.h"

#include <algorithm>
#include <limits>

#include "serving/prompt_shares.h"

namespace cadre {
namespace {

// Prompts that are read at once where none of them ends in the step: more would only share its
// tokens so thinly that all of them end late, whatever the order they came in.
constexpr int kPromptsAtOnce = 4;
constexpr int64_t kLeastPromptPart = 4;  // of max_num_mixed_tokens
// Sequences whose prefix is on disk that are passed over: asking walks over their prompts.
constexpr int kMostOnDisk = 4;
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

// The last token that a sequence may have is never computed.
int64_t MostTokens(const Sequence& s) {
  return s.prompt_tokens() + std::max(s.request.sampling.max_tokens - 1, 0);
}

int64_t TokensAfter(const Sequence& s, int64_t growth) {
  return std::min(s.known_tokens() + growth, std::max(MostTokens(s), s.known_tokens()));
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& cache)
    : options_(options),
      places_(std::min<int64_t>(options.max_num_seqs, options.max_num_batched_tokens)),
      cache_(cache),
      policy_(MakeQueuePolicy(options.queue)) {}

absl::Status Scheduler::Admissible(int64_t prompt_tokens, const SamplingParams& sampling,
                                   const EvictingSequence* evicting) const {
  if (prompt_tokens < 1) return InvalidArgument("prompt: 0 tokens, at least 1 is needed");
  const int64_t total = prompt_tokens + sampling.max_tokens;
  if (total > options_.max_context) {
    return InvalidArgument(
        "prompt: {} tokens and max_tokens {} are {} together, over the context of {}",
        prompt_tokens, sampling.max_tokens, total, options_.max_context);
  }
  if (evicting != nullptr) {
    if (evicting->blocks() <= cache_.blocks()) return absl::OkStatus();
    return InvalidArgument(
        "kv_budget: a prompt of {} tokens needs {} blocks with it, the KV cache has {}",
        prompt_tokens, evicting->blocks(), cache_.blocks());
  }
  const int64_t capacity = cache_.blocks() * cache_.block_size();
  if (total > capacity) {
    return InvalidArgument(
        "prompt: {} tokens and max_tokens {} are {} together, over the KV cache of {}",
        prompt_tokens, sampling.max_tokens, total, capacity);
  }
  return absl::OkStatus();
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  sequence->arrival = ++arrivals_;
  policy_->Queued(*sequence);
  waiting_.push_back(std::move(sequence));
}

void Scheduler::PreemptLast() {
  std::unique_ptr<Sequence> last = std::move(running_.back());
  running_.pop_back();
  if (last->evicting != nullptr) last->evicting->GiveWay(cache_);
  cache_.Free(last->kv);
  ++last->preemptions;
  ++preemptions_;
  waiting_.push_front(std::move(last));
}

bool Scheduler::Reserve(size_t index, int64_t tokens) {
  while (!cache_.Extend(running_[index]->kv, tokens)) {
    CADRE_CHECK(running_.size() > 1 || index > 0, "one sequence does not fit the KV cache");
    const bool itself = index + 1 == running_.size();
    PreemptLast();
    if (itself) return false;
  }
  return true;
}

bool Scheduler::Take(size_t index, int64_t tokens, Plans* plan) {
  Sequence& sequence = *running_[index];
  if (EvictingSequence* evicting = sequence.evicting.get()) {
    if (!Reserve(index, evicting->blocks() * cache_.block_size())) return false;
    evicting->Hold(cache_, sequence.kv.blocks());
    plan->push_back({&sequence, sequence.known_tokens() - 1, tokens, !evicting->read()});
    return true;
  }
  const int64_t begin = sequence.kv.stored();
  if (!Reserve(index, begin + tokens)) return false;
  plan->push_back({&sequence, begin, tokens});
  return true;
}

int64_t Scheduler::BlocksToGrow(const Sequence& s, int64_t growth) const {
  // All that it will ever need, at once.
  if (s.evicting != nullptr) return s.kv.blocks().empty() ? s.evicting->blocks() : 0;
  return cache_.BlocksNeeded(s.kv, TokensAfter(s, growth));
}

int64_t Scheduler::BlocksToKeep(const PassedOver& passed, int64_t growth) const {
  const Sequence& s = *passed.sequence;
  if (passed.why == Reuse::kAfterDisk) return BlocksToGrow(s, growth);
  // Its sibling has all but the last one, which is copied before it is written.
  const int64_t shared = s.known_tokens() / cache_.block_size();
  return cache_.BlocksFor(TokensAfter(s, growth)) - shared;
}

bool Scheduler::Fits(const Sequence& next, std::span<const PassedOver> passed) const {
  int64_t unread = next.unread();
  for (const auto& s : running_) unread += s->unread();
  // While prompts are read the others grow by a token a step.
  const int64_t spare = std::max<int64_t>(RoomForPrompts(running()), 1);
  const int64_t reserve = options_.growth_reserve << std::min(next.preemptions, 20);
  const int64_t growth = reserve == 0 ? 0 : reserve + unread / spare;
  // Its next token at least, or it would push out what runs already.
  int64_t blocks = BlocksToGrow(next, std::max<int64_t>(growth, 1));
  for (const auto& s : running_) blocks += BlocksToGrow(*s, growth);
  for (const PassedOver& p : passed) blocks += BlocksToKeep(p, growth);
  return blocks <= cache_.free_blocks();
}

// Where it comes for the first time: what it had computed itself before it gave way is no hit.
void Scheduler::CountAdmitted(double now, Sequence* sequence) {
  sequence->scheduled = now;
  const int64_t cached =
      sequence->evicting != nullptr ? sequence->evicting->prefix_tokens() : sequence->kv.stored();
  sequence->first_event.cached_tokens = static_cast<int>(cached);
  prefix_queries_ += sequence->prompt_tokens();
  prefix_hits_ += cached;
  policy_->Left(*sequence);
  policy_->Charge(*sequence, sequence->unread(), 0);
}

void Scheduler::Release(Sequence& sequence) {
  if (sequence.evicting != nullptr) sequence.evicting->Release(cache_);
  cache_.Free(sequence.kv);
}

Sequence* Scheduler::Admit(double now, int64_t most_unread) {
  std::vector<Waiting::iterator> queue;
  for (auto it = waiting_.begin(); it != waiting_.end(); ++it) queue.push_back(it);
  const auto after = [this](const auto& a, const auto& b) { return policy_->Before(**b, **a); };
  std::ranges::make_heap(queue, after);
  std::vector<PassedOver> passed;
  int on_disk = 0;
  // Those behind leave a place, too.
  while (!queue.empty() && on_disk < kMostOnDisk && running() + std::ssize(passed) < places_) {
    std::ranges::pop_heap(queue, after);
    const Waiting::iterator next = queue.back();
    queue.pop_back();
    const Reuse reuse = ReusePrefix(cache_, **next, running_, /*may_read=*/on_disk == 0);
    if (reuse == Reuse::kDone) {
      const bool fits = running_.empty() || Fits(**next, passed);
      if (fits && (*next)->unread() <= most_unread) return MoveToRunning(now, next);
      Release(**next);
      return nullptr;
    }
    passed.push_back({next->get(), reuse});
    on_disk += reuse == Reuse::kAfterDisk;
  }
  return nullptr;
}

Sequence* Scheduler::MoveToRunning(double now, Waiting::iterator next) {
  Sequence* admitted = next->get();
  if (admitted->preemptions == 0) CountAdmitted(now, admitted);
  const auto place = std::ranges::upper_bound(
      running_, *next, [this](const auto& a, const auto& b) { return policy_->Outlasts(*a, *b); });
  running_.insert(place, std::move(*next));
  waiting_.erase(next);
  return admitted;
}

void Scheduler::AdmitMixed(double now, int64_t room) {
  int64_t unread = 0, reading = 0;
  for (const auto& s : running_) {
    if (s->decodes()) continue;
    unread += s->unread();
    ++reading;
  }
  while (reading < room && (reading < kPromptsAtOnce || unread < room)) {
    const Sequence* admitted = Admit(now, kAny);
    if (admitted == nullptr) return;
    unread += admitted->unread();
    ++reading;
  }
}

int64_t Scheduler::RoomForPrompts(int64_t decodes) const {
  const int64_t room = options_.max_num_batched_tokens - decodes;
  if (decodes == 0) return room;
  const int64_t mixed = options_.max_num_mixed_tokens;
  return std::min(room, std::max({mixed - decodes, mixed / kLeastPromptPart, int64_t{1}}));
}

void Scheduler::PlanDecodes(Plans* plan) {
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->decodes()) Take(i, 1, plan);
  }
}

// Those that were admitted with one token to read are here, too: PlanDecodes came before them.
void Scheduler::PlanPrompts(int64_t room, Plans* plan) {
  std::vector<size_t> readers;
  std::vector<int64_t> left;
  auto decode = plan->cbegin();  // planned in the order of running_
  for (size_t i = 0; i < running_.size(); ++i) {
    if (decode != plan->cend() && decode->sequence == running_[i].get()) {
      ++decode;
      continue;
    }
    readers.push_back(i);
    left.push_back(running_[i]->unread());
  }
  // More may read than there is room for since others came to decode.
  room = std::max(room, static_cast<int64_t>(readers.size()));
  const std::vector<int64_t> shares = SharePrompts(left, room);
  for (size_t r = 0; r < readers.size() && readers[r] < running_.size(); ++r) {
    Take(readers[r], shares[r], plan);
  }
}

void Scheduler::PlanWholePrompts(double now, Plans* plan) {
  int64_t room = options_.max_num_batched_tokens;
  while (const Sequence* admitted = Admit(now, plan->empty() ? kAny : room)) {
    const int64_t tokens = admitted->unread();
    const auto place = std::ranges::find(running_, admitted, &std::unique_ptr<Sequence>::get);
    if (!Take(static_cast<size_t>(place - running_.begin()), tokens, plan)) return;
    room -= tokens;
  }
}

std::vector<ScheduledChunk> Scheduler::Plan(double now) {
  Plans plan;
  const int64_t preempted_before = preemptions_;
  if (!options_.chunked_prefill) PlanWholePrompts(now, &plan);
  if (plan.empty()) PlanDecodes(&plan);
  if (options_.chunked_prefill) {
    const int64_t room = RoomForPrompts(static_cast<int64_t>(plan.size()));
    if (preemptions_ == preempted_before) AdmitMixed(now, room);
    PlanPrompts(room, &plan);
  }
  // A preempted sequence may have been planned before it gave way; it comes back in a later step.
  std::erase_if(plan,
                [](const ScheduledChunk& chunk) { return chunk.sequence->kv.blocks().empty(); });
  for (const ScheduledChunk& chunk : plan) {
    Sequence& s = *chunk.sequence;
    if (chunk.by_layers) continue;
    recomputed_tokens_ +=
        std::max<int64_t>(std::min(chunk.end(), s.computed_most) - chunk.begin, 0);
    s.computed_most = std::max(s.computed_most, chunk.end());
    if (chunk.samples()) policy_->Charge(s, 0, 1);
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
    if (removed->preemptions == 0) policy_->Left(*removed);
  }
  if (removed != nullptr) Release(*removed);
  return removed;
}

std::vector<uint64_t> Scheduler::Ids() const {
  std::vector<uint64_t> ids;
  for (const auto& s : running_) ids.push_back(s->request.id);
  for (const auto& s : waiting_) ids.push_back(s->request.id);
  return ids;
}

}  // namespace cadre
