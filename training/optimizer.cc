#include "training/optimizer.h"

#include "proto/train_config.pb.h"
#include "training/adamw.h"

namespace cadre {
namespace {

struct Row {
  config::OptimizerKind kind;
  std::unique_ptr<Optimizer> (*make)(const config::OptimizerConfig&, ParameterStore&, Allocator&,
                                     std::vector<Shard>);
  int64_t (*state_bytes)(int64_t elements, DType weight_dtype);
};

constexpr Row kOptimizers[] = {
    {config::OPTIMIZER_KIND_ADAMW, MakeAdamW, AdamWStateBytes},
};

const Row* Find(config::OptimizerKind kind) {
  for (const Row& row : kOptimizers) {
    if (row.kind == kind) return &row;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(const config::OptimizerConfig& config,
                                                         ParameterStore& store,
                                                         Allocator& allocator,
                                                         std::vector<Shard> owned) {
  const Row* row = Find(config.kind());
  if (row == nullptr) {
    return InvalidArgument("optimizer.kind: {} is unknown", static_cast<int>(config.kind()));
  }
  if (config.beta1() >= 1.0 || config.beta2() >= 1.0) {
    return InvalidArgument("optimizer: beta1 {} and beta2 {} must be under 1", config.beta1(),
                           config.beta2());
  }
  if (owned.empty()) {
    for (const ParamBucket& bucket : store.buckets()) owned.push_back({0, bucket.numel});
  }
  return row->make(config, store, allocator, std::move(owned));
}

int64_t OptimizerStateBytes(const config::OptimizerConfig& config, const ParameterStore& store,
                            std::span<const Shard> owned) {
  const Row* row = Find(config.kind());
  if (row == nullptr) return 0;
  int64_t bytes = 0;
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    const ParamBucket& bucket = store.buckets()[b];
    if (!bucket.trainable) continue;
    bytes += row->state_bytes(owned.empty() ? bucket.numel : owned[b].numel, bucket.dtype);
  }
  return bytes;
}

}  // namespace cadre
