// Scheduler: which sequences run in the next step and with how many tokens each.
//
// Mixed steps (chunked_prefill): every running sequence that decodes has its token first; what the
// step's budget leaves is shared by the prompts being read (serving/prompt_shares.h). Where
// sequences decode, prompts fill the step up to max_num_mixed_tokens alone, which bounds how long
// the next tokens take, but have a quarter of that at least, so that many who decode do not keep
// new requests from their first token. At most max_num_seqs sequences run, and never more than the
// budget has tokens, so a prompt of any length costs no running sequence its turn. Without chunked
// prefill a step reads whole prompts or decodes: prompts first, as many as fit the budget, one at
// least however long it is.
//
// Who is admitted next and who gives way is the queue policy's. A sequence is admitted where there
// are blocks for all it knows and for the growth of everything that runs by growth_reserve tokens,
// the new one included; the reserve doubles with each time that the sequence was preempted. So an
// admitted sequence computes at least its reserve before it can be pushed out again, and is
// preempted at most about log2(max_tokens / growth_reserve) times. One that waits for what is not
// a place (a sibling that reads its prompt, a prefix that comes from disk) is passed over, and
// those behind it leave the place and the blocks that it will need. Where blocks run out all the same, the
// running sequence that the policy ranks last gives its up and waits again; what is not found
// cached then is computed again, with the same bits. The first in rank can always go on, since a
// request that could not fit alone is refused by Admissible.
//
// Engine thread only, but for Admissible.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <vector>

#include "memory/kv_cache.h"
#include "serving/prefix_reuse.h"
#include "serving/queue_policy.h"
#include "serving/sequence.h"

namespace cadre {

struct SchedulerOptions {
  int max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_num_mixed_tokens = 2048;  // see above
  int64_t max_context = 0;
  bool chunked_prefill = true;
  int64_t growth_reserve = 128;  // tokens, see above; 0 admits whatever fits at once
  QueueOptions queue;
};

class Scheduler {
 public:
  // The cache outlives the scheduler.
  Scheduler(const SchedulerOptions& options, KvCache& cache);

  // kInvalidArgument: over the context; kResourceExhausted: over all blocks there are.
  absl::Status Admissible(int64_t prompt_tokens, const SamplingParams& sampling,
                          const EvictingSequence* evicting = nullptr) const;

  void Add(std::unique_ptr<Sequence> sequence);
  // The next step's work, with blocks for it; empty where there is nothing to do. Whoever asks runs
  // it whole before asking again.
  std::vector<ScheduledChunk> Plan(double now);
  // Frees the blocks of a sequence and forgets it.
  std::unique_ptr<Sequence> Remove(uint64_t id);
  std::vector<uint64_t> Ids() const;

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  int64_t recomputed_tokens() const { return recomputed_tokens_; }
  // Prompt tokens of the requests that were admitted, and those of them that were cached.
  int64_t prefix_queries() const { return prefix_queries_; }
  int64_t prefix_hits() const { return prefix_hits_; }

 private:
  using Plans = std::vector<ScheduledChunk>;

  // Tokens that prompts may have in a step in which `decodes` sequences decode.
  int64_t RoomForPrompts(int64_t decodes) const;
  void PlanDecodes(Plans* plan);
  void PlanPrompts(int64_t room, Plans* plan);
  void PlanWholePrompts(double now, Plans* plan);
  // Puts `tokens` of the sequence into the plan; false where it gave way for lack of blocks.
  bool Take(size_t index, int64_t tokens, Plans* plan);
  // Blocks for the running sequence's first `tokens`; those behind it give way. False: it did
  // itself.
  bool Reserve(size_t index, int64_t tokens);
  void PreemptLast();

  // What is admitted where `room` tokens are left for prompts.
  void AdmitMixed(double now, int64_t room);
  using Waiting = std::list<std::unique_ptr<Sequence>>;
  struct PassedOver {
    const Sequence* sequence;
    Reuse why;
  };

  // The sequence that runs from now on, or null where nobody is to; one with more than
  // `most_unread` tokens to read keeps waiting, and those behind it do.
  Sequence* Admit(double now, int64_t most_unread);
  Sequence* MoveToRunning(double now, Waiting::iterator next);
  void CountAdmitted(double now, Sequence* sequence);
  void Release(Sequence& sequence);
  bool Fits(const Sequence& next, std::span<const PassedOver> passed) const;
  int64_t BlocksToGrow(const Sequence& sequence, int64_t growth) const;
  // What one that was passed over will need.
  int64_t BlocksToKeep(const PassedOver& passed, int64_t growth) const;

  const SchedulerOptions options_;
  const int64_t places_;
  KvCache& cache_;
  std::unique_ptr<QueuePolicy> policy_;
  Waiting waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // as the policy ranks them, the first goes last
  uint64_t arrivals_ = 0;
  int64_t preemptions_ = 0, recomputed_tokens_ = 0;
  int64_t prefix_queries_ = 0, prefix_hits_ = 0;
};

}  // namespace cadre
