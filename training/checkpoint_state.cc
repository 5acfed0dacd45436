#include "training/checkpoint_state.h"

#include <algorithm>

namespace cadre {
namespace {

Shard Both(const Shard& a, const Shard& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max<int64_t>(0, std::min(a.end(), b.end()) - begin)};
}

// The parameters' pieces of elements `wanted` of a bucket; `flat` holds its elements `held`.
struct BucketTensor {
  const ParamBucket& bucket;
  const Tensor& flat;
  Shard held;
};
void AppendPieces(const ParameterStore& store, const BucketTensor& from, const Shard& wanted,
                  std::vector<ParamPiece>* pieces) {
  for (size_t i = 0; i < from.bucket.params.size(); ++i) {
    const ParamId id = from.bucket.params[i];
    const int64_t offset = from.bucket.offsets[i];
    const Shard range = Both({offset, store.spec(id).shape.numel()}, Both(wanted, from.held));
    if (range.numel == 0) continue;
    pieces->push_back({.param = id,
                       .begin = range.begin - offset,
                       .values = from.flat.Narrow(range.begin - from.held.begin, range.numel)});
  }
}

}  // namespace

bool Changes(const ParamSpec& spec) { return spec.trainable || spec.fp32; }

StatePart StateOf(const ParameterStore& store, const Optimizer& optimizer,
                  const std::vector<Shard>& owned, const std::vector<Shard>& part) {
  StatePart state;
  const std::vector<OptimizerSlot> slots = optimizer.Slots();
  for (const OptimizerSlot& slot : slots) {
    if (slot.name != kMasterSlot) state.slots.push_back({.name = std::string(slot.name)});
  }
  for (size_t b = 0; b < store.buckets().size(); ++b) {
    const ParamBucket& bucket = store.buckets()[b];
    const Shard all = {0, bucket.numel};
    const Shard held = owned.empty() ? all : owned[b], wanted = part.empty() ? all : part[b];
    bool separate = false;  // masters beside the weights
    size_t next = 0;
    for (const OptimizerSlot& slot : slots) {
      const bool master = slot.name == kMasterSlot;
      std::vector<ParamPiece>* pieces = master ? &state.weights : &state.slots[next++].pieces;
      if (!slot.buckets[b].defined()) continue;
      separate |= master;
      AppendPieces(store, {bucket, slot.buckets[b], held}, wanted, pieces);
    }
    if (separate) continue;
    AppendPieces(store, {bucket, bucket.weights, bucket.parts.weights}, wanted, &state.weights);
  }
  return state;
}

StateSlot MasterSlot(const ParameterStore& store, const std::vector<ParamPiece>& weights) {
  StateSlot master{.name = std::string(kMasterSlot)};
  for (const ParamPiece& piece : weights) {
    if (Changes(store.spec(piece.param))) master.pieces.push_back(piece);
  }
  return master;
}

}  // namespace cadre
