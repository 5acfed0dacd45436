// Optimizer: turns the gradients in a ParameterStore's buckets into new weights. Its state lies in
// flat tensors shaped like the buckets, so that checkpoints, resharding and offload treat it as
// they treat weights, and reach it by parameter name through ParameterStore::View.
//
// Where data-parallel ranks share the state out (ZeRO-1 and on: Rajbhandari et al., "ZeRO: Memory
// Optimizations Toward Training Trillion Parameter Models", 2020), an optimizer has the state of
// its part of each bucket and updates that part alone.
//
// One thread at a time; Step enters OpenMP. The store and the allocator outlive the optimizer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "core/status.h"
#include "parallel/shard.h"

namespace cadre {

namespace config {
class OptimizerConfig;
}

// One kind of state, e.g. "exp_avg".
struct OptimizerSlot {
  std::string_view name;
  // One per bucket of the store, [numel of the owned part]; undefined where it has none.
  std::vector<Tensor> buckets;
};

struct OptimizerStep {
  double lr = 0.0;
  double gradient_scale = 1.0;  // of clipping
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;

  // Takes master weights over from the store's weights (fresh or imported ones). Not called after
  // a checkpoint brought the masters themselves.
  virtual void AdoptWeights() = 0;

  // Applies one update of all trainable parameters, writes weights in compute dtype and calls
  // WeightsChanged.
  virtual void Step(Context& ctx, const OptimizerStep& step) = 0;

  // Updates applied so far (bias correction counts these); part of a checkpoint.
  virtual int64_t updates() const = 0;
  virtual void set_updates(int64_t updates) = 0;

  // The tensors share storage with the optimizer: writing them loads state.
  virtual std::vector<OptimizerSlot> Slots() const = 0;
};

// From the table of optimizers. The state is allocated here, for the buckets with gradients.
// owned: the part of each bucket; empty: all of all.
absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(const config::OptimizerConfig& config,
                                                         ParameterStore& store,
                                                         Allocator& allocator,
                                                         std::vector<Shard> owned = {});

// Bytes of state that MakeOptimizer will allocate with the same `owned`; callable when the store
// has buckets, before it is allocated.
int64_t OptimizerStateBytes(const config::OptimizerConfig& config, const ParameterStore& store,
                            std::span<const Shard> owned = {});

}  // namespace cadre
