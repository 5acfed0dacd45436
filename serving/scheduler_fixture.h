// For the scheduler's tests: a KV cache and requests of given lengths, and steps run as the engine
// runs them, without a model.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/host_allocator.h"
#include "serving/kv_plan.h"
#include "serving/scheduler.h"

namespace cadre {

class SchedulerRig {
 public:
  static constexpr int64_t kBlockSize = 16;
  using Ran = std::vector<std::pair<uint64_t, int64_t>>;  // (id, tokens) of a step's chunks

  struct Ask {
    uint64_t id = 0;
    int64_t prompt = 1;
    int max_tokens = 16;
    int priority = 0;
    std::string tenant = {};
  };

  SchedulerRig(int64_t blocks, const SchedulerOptions& options, bool prefix_caching = true,
               const KvTierOptions& tiers = {})
      : cache_(allocator_, {Layout()}, blocks,
               {.prefix_caching = prefix_caching,
                .tiers = *MakeKvTiers(std::vector{Layout()}, tiers, prefix_caching)}),
        scheduler_(options, cache_) {}
  ~SchedulerRig() {
    for (uint64_t id : scheduler_.Ids()) scheduler_.Remove(id);
  }

  // Its prompt's tokens are all its id.
  void Add(const Ask& ask) {
    GenerationRequest request{
        .id = ask.id,
        .priority = ask.priority,
        .prompt = std::make_shared<std::vector<int32_t>>(ask.prompt, static_cast<int32_t>(ask.id)),
        .sampling = {.max_tokens = ask.max_tokens},
        .tenant = ask.tenant};
    AddRequest(std::move(request));
  }
  void AddRequest(GenerationRequest request) {
    auto sequence = std::make_unique<Sequence>();
    sequence->tokens = *request.prompt;
    sequence->request = std::move(request);
    scheduler_.Add(std::move(sequence));
  }

  // A step in which nothing ends.
  Ran Step() { return Run(/*ends=*/false); }
  // A step in which a sequence with max_tokens goes.
  Ran StepAndEnd() { return Run(/*ends=*/true); }

  Scheduler& scheduler() { return scheduler_; }
  KvCache& cache() { return cache_; }
  // Of all that was asked, in the order in which they ended.
  const std::vector<uint64_t>& ended() const { return ended_; }
  // Times that the one of them that gave way most often did.
  int most_preempted() const { return most_preempted_; }

 private:
  static ops::KvLayout Layout() {
    return {.dtype = DType::kF32,
            .kv_heads = 1,
            .key_dim = 8,
            .value_dim = 8,
            .block_size = kBlockSize};
  }

  Ran Run(bool ends) {
    Ran ran;
    std::vector<uint64_t> over;
    for (const ScheduledChunk& chunk : scheduler_.Plan(1.0)) {
      Sequence& s = *chunk.sequence;
      const bool samples = chunk.samples();
      ran.emplace_back(s.request.id, chunk.tokens);
      EXPECT_GT(chunk.tokens, 0);
      EXPECT_EQ(chunk.begin, s.kv.stored());  // nothing skipped, nothing twice
      EXPECT_LE(chunk.end(), s.known_tokens());
      EXPECT_GE(static_cast<int64_t>(s.kv.blocks().size()) * kBlockSize, chunk.end());
      cache_.TakeCopies();  // there is nothing to copy
      cache_.Commit(s.kv, std::span(s.tokens).first(static_cast<size_t>(chunk.end())));
      if (samples) s.tokens.push_back(static_cast<int32_t>(s.request.id));
      if (ends && s.generated() >= s.request.sampling.max_tokens) over.push_back(s.request.id);
    }
    for (uint64_t id : over) {
      most_preempted_ = std::max(most_preempted_, scheduler_.Remove(id)->preemptions);
      ended_.push_back(id);
    }
    return ran;
  }

  HostAllocator allocator_;
  KvCache cache_;
  Scheduler scheduler_;
  std::vector<uint64_t> ended_;
  int most_preempted_ = 0;
};

}  // namespace cadre
