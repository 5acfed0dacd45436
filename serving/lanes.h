// Lanes: a server's sequences by the data-parallel rank that runs them. Each such rank has the keys
// and values of its own sequences alone and runs attention for them; experts that ranks share see
// the tokens of all lanes. A lane is a scheduler and the books of one rank's KV cache; rank 0 keeps
// all of them, and of the first, its own, the bytes, too. One process has one lane.
//
//   lanes.Add(sequence);                               // to the lane with the fewest
//   std::vector<ScheduledChunk> chunks = lanes.Plan(now);      // lane after lane
//   std::vector<StepPlan> plans = lanes.BuildPlans(chunks);    // one a lane, some of no tokens
//
// A sequence stays in its lane, and finds cached prefixes there; choices that share a prompt are in
// one lane. Bounds (sequences, tokens of a step, blocks) are of each lane.
//
// Engine thread only, but for Admissible.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "memory/kv_cache.h"
#include "serving/kv_plan.h"
#include "serving/scheduler.h"
#include "serving/step_plan.h"

namespace cadre {

class Lanes {
 public:
  // The allocator outlives them. tiers: of one lane's cache; null: none.
  struct Options {
    int lanes = 1;
    SchedulerOptions scheduler;
    bool prefix_caching = true;
    std::unique_ptr<KvTiers> tiers = nullptr;
  };
  Lanes(Allocator& allocator, const KvPlan& kv, Options options);

  int count() const { return static_cast<int>(lanes_.size()); }
  // The first one's, with the bytes.
  KvCache& own_cache() { return *lanes_.front().cache; }
  KvCache& cache(const Sequence& sequence) {
    return *lanes_[static_cast<size_t>(sequence.lane)].cache;
  }
  int64_t blocks() const;
  // Tokens that fit a lane.
  int64_t capacity() const {
    const KvCache& cache = *lanes_.front().cache;
    return cache.blocks() * cache.block_size();
  }
  double kv_usage() const;  // see KvCache::usage
  void SetWeightVersion(int64_t version);
  // See KvCache.
  void DropBytes();
  void AllocateBytes();

  // See Scheduler.
  absl::Status Admissible(int64_t prompt_tokens, const SamplingParams& sampling,
                          const EvictingSequence* evicting) const {
    return lanes_.front().scheduler->Admissible(prompt_tokens, sampling, evicting);
  }
  void Add(std::unique_ptr<Sequence> sequence);
  std::vector<ScheduledChunk> Plan(double now);
  std::unique_ptr<Sequence> Remove(uint64_t id);
  std::vector<uint64_t> Ids() const;
  int running() const { return static_cast<int>(Sum(&Scheduler::running)); }
  int waiting() const { return static_cast<int>(Sum(&Scheduler::waiting)); }
  int64_t preemptions() const { return Sum(&Scheduler::preemptions); }
  int64_t recomputed_tokens() const { return Sum(&Scheduler::recomputed_tokens); }
  int64_t prefix_queries() const { return Sum(&Scheduler::prefix_queries); }
  int64_t prefix_hits() const { return Sum(&Scheduler::prefix_hits); }

  // Of the chunks of a Plan.
  std::vector<StepPlan> BuildPlans(std::span<const ScheduledChunk> chunks);

 private:
  struct Lane {
    std::unique_ptr<KvCache> cache;
    std::unique_ptr<Scheduler> scheduler;
  };
  int Choose(const Sequence& sequence) const;
  template <typename Number>
  int64_t Sum(Number (Scheduler::*number)() const) const {
    int64_t sum = 0;
    for (const Lane& lane : lanes_) sum += ((*lane.scheduler).*number)();
    return sum;
  }

  std::vector<Lane> lanes_;
  // Of the sequence that was added last.
  std::shared_ptr<const std::vector<int32_t>> last_prompt_;
  int last_lane_ = 0;
};

}  // namespace cadre
