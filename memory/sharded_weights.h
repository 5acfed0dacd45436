// ShardedWeights: the weights of a store that ranks share out, brought together for as long as a
// layer uses them (ZeRO-3: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
// Parameter Models", 2020).
//
//   ShardedWeights weights(store, allocator, options);   // gathers for the store from now on
//   weights.Begin(ShardedWeights::Passes::kTraining);
//   ... forward and backward passes ...
//   weights.End();                                       // before shards change
//
// A bucket is gathered at its first lease and dropped when, without leases, another layer's first
// lease comes; outside the layers each bucket counts as a layer. While a layer computes, the
// buckets of the next `prefetch` ones are on their way: those that followed it at this place in the
// last passes of the same kind. Everything follows the order of leases alone, which the ranks of a
// group have in common.
//
// One thread, the store's. Communication that fails is told to `failed`, and weights are zeros.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/parameters.h"
#include "core/status.h"
#include "parallel/communicator.h"

namespace cadre {

class ShardedWeights final : public WeightGatherer {
 public:
  enum class Passes : uint8_t { kTraining, kEvaluation };

  struct Options {
    // Who shares a bucket out, cut by ShardOf.
    std::function<Communicator*(const ParamBucket&)> group_of;
    int prefetch = 1;  // layers; 0: each is waited for when it is used
    std::function<void(const absl::Status&)> failed;
  };

  // `store` has been allocated. It, the allocator and the groups outlive this.
  ShardedWeights(ParameterStore& store, Allocator& allocator, Options options);
  ~ShardedWeights() override;
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;

  Tensor Acquire(int bucket) override;
  void Release(int bucket) override;

  // Memory grows with the leases of layers until End: a long evaluation begins anew now and then.
  void Begin(Passes passes);
  // Drops everything. No lease is out.
  void End();

  // Bytes of weights that gathering was begun for, so far.
  int64_t bytes() const { return bytes_; }
  // Seconds spent waiting for weights so far.
  double blocked_seconds() const { return blocked_seconds_; }

 private:
  struct Gathered {
    Tensor all;    // undefined: not here
    WorkPtr work;  // null: landed
    int leases = 0;
  };
  // What a layer leased between the layers before and after it.
  struct Visit {
    int layer = 0;
    std::vector<int> buckets;
  };

  int LayerOf(int bucket) const;
  void StartVisit(int layer);
  void DropAllBut(std::span<const Visit> kept);
  void Start(int bucket);
  void Land(int bucket);

  ParameterStore& store_;
  Allocator& allocator_;
  const Options options_;
  std::vector<Gathered> gathered_;              // by bucket
  std::array<std::vector<Visit>, 2> recorded_;  // the last passes, by kind
  std::vector<Visit> visits_;                   // of these passes
  Passes passes_ = Passes::kTraining;
  bool follows_ = false;  // these passes have been as the last ones so far
  int64_t bytes_ = 0;
  double blocked_seconds_ = 0;
};

}  // namespace cadre
