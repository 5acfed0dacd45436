#include "training/checkpoint_state.h"

#include <algorithm>

namespace cadre {

bool Changes(const ParamSpec& spec) { return spec.trainable || spec.fp32; }

bool BucketChanges(const ParameterStore& store, size_t bucket) {
  const std::vector<ParamId>& params = store.buckets()[bucket].params;
  return std::any_of(params.begin(), params.end(),
                     [&](ParamId id) { return Changes(store.spec(id)); });
}

std::vector<Tensor> PreciseWeights(const ParameterStore& store, const Optimizer& optimizer) {
  std::vector<Tensor> weights;
  for (const ParamBucket& bucket : store.buckets()) weights.push_back(bucket.weights);
  for (const OptimizerSlot& slot : optimizer.Slots()) {
    if (slot.name != kMasterSlot) continue;
    for (size_t b = 0; b < weights.size(); ++b) {
      if (slot.buckets[b].defined()) weights[b] = slot.buckets[b];
    }
  }
  return weights;
}

}  // namespace cadre
