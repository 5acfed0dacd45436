#include "training/checkpoint_state.h"

#include "parallel/shard.h"

namespace cadre {
namespace {

ParamPiece Whole(const ParameterStore& store, const Tensor& bucket, ParamId id) {
  Tensor view = store.View(bucket, id);
  return {.param = id, .values = view.Reshape({view.numel()})};
}

}  // namespace

bool Changes(const ParamSpec& spec) { return spec.trainable || spec.fp32; }

StatePart WholeState(const ParameterStore& store, const Optimizer& optimizer) {
  StatePart state;
  std::vector<Tensor> precise;
  for (const ParamBucket& bucket : store.buckets()) precise.push_back(bucket.weights);
  for (const OptimizerSlot& slot : optimizer.Slots()) {
    const bool master = slot.name == kMasterSlot;
    if (!master) state.slots.push_back({.name = std::string(slot.name)});
    for (ParamId id = 0; id < store.size(); ++id) {
      const auto b = static_cast<size_t>(store.bucket_of(id));
      const Tensor& bucket = slot.buckets[b];
      if (!bucket.defined()) continue;
      if (master) {
        precise[b] = bucket;
      } else if (Changes(store.spec(id))) {
        state.slots.back().pieces.push_back(Whole(store, bucket, id));
      }
    }
  }
  for (ParamId id = 0; id < store.size(); ++id) {
    state.weights.push_back(Whole(store, precise[static_cast<size_t>(store.bucket_of(id))], id));
  }
  return state;
}

ParamPiece ShareOf(const ParamPiece& piece, int replicas, int replica) {
  const Shard shard = ShardOf(piece.values.numel(), replicas, replica);
  return {.param = piece.param,
          .begin = piece.begin + shard.begin,
          .values = piece.values.Narrow(shard.begin, shard.numel)};
}

StateSlot MasterSlot(const ParameterStore& store, const std::vector<ParamPiece>& weights) {
  StateSlot master{.name = std::string(kMasterSlot)};
  for (const ParamPiece& piece : weights) {
    if (Changes(store.spec(piece.param))) master.pieces.push_back(piece);
  }
  return master;
}

}  // namespace cadre
