// How large the KV cache is: from the engine's options, the model and the machine's memory.
#pragma once

#include "core/ops/kv_view.h"
#include "memory/kv_tiers.h"
#include "model/model.h"

namespace cadre {

class ServingRanks;

// The layout of one layer's keys and values.
ops::KvLayout KvLayoutOf(const AttentionSpec& spec, DType dtype, int block_size,
                         ops::KvQuantization quantization = ops::KvQuantization::kNone);

struct KvPlan {
  std::vector<ops::KvLayout> layouts;  // one per layer
  int64_t blocks = 0;
};
struct KvPlanOptions {
  int64_t context = 0;  // of one sequence
  int max_num_seqs = 0;
  int block_size = 0;
  ops::KvQuantization quantization = ops::KvQuantization::kNone;
  int64_t kv_cache_memory_bytes = 0;  // 0: see EngineOptions
  ServingRanks* ranks = nullptr;      // all of them plan at the same time, and have as many blocks
};
// Whether that much memory is free for each of the host's ranks (null: there is one); the error
// speaks of kv_cache_memory_bytes where it is set.
absl::Status CheckKvMemory(int64_t kv_cache_memory_bytes, size_t bytes, const ServingRanks* ranks);
// kInvalidArgument where the options do not fit the model, kResourceExhausted where a cache of the
// default size does not fit the memory that is free.
absl::StatusOr<KvPlan> PlanKvCache(const Model& model, const KvPlanOptions& options);

// Where blocks of these layouts go that leave the cache; null where the options name no tier.
// kInvalidArgument as KvTiers::Create, and where prefixes are not cached.
absl::StatusOr<std::unique_ptr<KvTiers>> MakeKvTiers(std::span<const ops::KvLayout> layouts,
                                                     const KvTierOptions& options,
                                                     bool prefix_caching);

}  // namespace cadre
