// Scheduler: which sequences run in the next step and with how many tokens each. First come, first
// served: running sequences decode first, then prompts are read in chunks, oldest first, while the
// step's token budget lasts; a waiting request is admitted while there are places and blocks.
//
// Where blocks run out the youngest running sequence gives its up and goes back to the front of the
// queue; what is not found cached then is computed again, with the same bits. The oldest can always
// go on, since a request that could not fit alone is refused by Admissible.
//
// Engine thread only, but for Admissible.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "memory/kv_cache.h"
#include "serving/sequence.h"

namespace cadre {

struct SchedulerOptions {
  int max_num_seqs = 64;
  int64_t max_num_batched_tokens = 2048;
  int64_t max_context = 0;
};

class Scheduler {
 public:
  // The cache outlives the scheduler.
  Scheduler(const SchedulerOptions& options, KvCache& cache) : options_(options), cache_(cache) {}

  // kInvalidArgument: over the context; kResourceExhausted: over all blocks there are.
  absl::Status Admissible(int64_t prompt_tokens, const SamplingParams& sampling) const;

  void Add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  // The next step's work, with blocks for it; empty where there is nothing to do.
  std::vector<ScheduledChunk> Plan(double now);
  // Frees the blocks of a sequence and forgets it.
  std::unique_ptr<Sequence> Remove(uint64_t id);
  std::vector<uint64_t> Ids() const;

  int running() const { return static_cast<int>(running_.size()); }
  int waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t preemptions() const { return preemptions_; }
  // Prompt tokens of the requests that were admitted, and those of them that were cached.
  int64_t prefix_queries() const { return prefix_queries_; }
  int64_t prefix_hits() const { return prefix_hits_; }

 private:
  // Blocks for `tokens` more; preempts younger sequences for it. False: `index` itself gave way.
  bool Reserve(size_t index, int64_t tokens);
  void PreemptYoungest();
  void Admit(double now);

  SchedulerOptions options_;
  KvCache& cache_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  int64_t preemptions_ = 0, prefix_queries_ = 0, prefix_hits_ = 0;
};

}  // namespace cadre
