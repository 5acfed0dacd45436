// Which requests keep their keys and values within a budget, and by which policy: the deployment's
// choice and, within its bounds, a request's.
#pragma once

#include <memory>
#include <string>

#include "memory/kv_block_pool.h"
#include "memory/kv_eviction.h"
#include "model/decoder_spec.h"
#include "serving/evicting_sequence.h"
#include "serving/request.h"

namespace cadre {

struct EvictionOptions {
  std::string policy;        // see MakeEvictionPolicy; empty: nothing is evicted
  int64_t budget = 0;        // of requests that name none; 0: those keep everything
  int64_t least_budget = 0;  // that a request may name; the policy has a least one besides
  int64_t most_budget = 0;   // 0: any
  CakeOptions cake;
};

// What evicting depends on; all of it is there while the weights are not.
struct EvictionDeps {
  const KvBlockPool& pool;
  bool latent = false;                      // attention of any layer
  bool speculation = false, ranks = false;  // what the engine does besides
};

bool HasLatentAttention(const DecoderSpec& spec);

// kInvalidArgument where the deployment cannot evict as it is asked to.
absl::Status CheckEviction(const EvictionOptions& options, const DecoderSpec& spec,
                           const EvictionDeps& deps);

// What the request is kept in; null where nothing of it can ever leave. kInvalidArgument names the
// request's field.
absl::StatusOr<std::unique_ptr<EvictingSequence>> MakeEvicting(const GenerationRequest& request,
                                                               const EvictionOptions& options,
                                                               const EvictionDeps& deps);

}  // namespace cadre
