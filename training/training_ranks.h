// TrainingRanks: what a training run does together with the other ranks of its world: sums over
// data-parallel ranks, one decision for all, and the gradients' reduction. In one process every
// sum is the rank's own value.
//
// One thread, the trainer's. Every rank makes the same calls in the same order.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/host_allocator.h"
#include "core/parameters.h"
#include "core/status.h"
#include "memory/sharded_weights.h"
#include "parallel/gradient_reducer.h"
#include "parallel/mesh.h"

namespace cadre {

// Over which ranks a bucket's gradients are summed.
Axis ReductionAxis(const ParamBucket& bucket);

// What `rank` of a layout keeps of a bucket's weights and gradients.
BucketParts PartsOf(const Layout& layout, int rank, const ParamBucket& bucket);

// What `rank` alone writes of a bucket into checkpoints.
Shard SoleShard(const Layout& layout, int rank, const ParamBucket& bucket);

class TrainingRanks {
 public:
  // world: null for one process; else outlives this.
  TrainingRanks(World* world, const Layout& layout, const Mesh::Wrap& wrap = nullptr)
      : mesh_(world, layout, wrap), groups_(mesh_.Groups()) {}

  const Layout& layout() const { return mesh_.layout(); }
  int rank() const { return mesh_.rank(); }
  // The one that writes metrics, progress and the checkpoint's manifest.
  bool leader() const { return mesh_.rank() == 0; }
  int data_rank() const { return mesh_.place().dp; }
  int data_size() const { return layout().dp; }
  ModelPart part() const { return mesh_.part(); }
  // All ranks, for the thread that writes checkpoints; null in one process.
  Communicator* checkpoint_group() const { return mesh_.checkpoint(); }
  // For the context; null in one process.
  ParallelGroups* groups() { return mesh_.world() == nullptr ? nullptr : &groups_; }

  // In place, over the ranks with different samples, in their order.
  absl::Status SumOverSamples(std::span<int64_t> values, const OpLabel& label);
  // Over the ranks with different targets: those that share a sample's context too.
  absl::Status SumOverTargets(std::span<double> values, const OpLabel& label);
  // Over the ranks with different tokens between blocks: those of a sample too.
  absl::Status SumOverTokens(std::span<int64_t> values, const OpLabel& label);
  absl::Status SumOverTokens(std::span<double> values, const OpLabel& label);
  // Over the pipeline's ranks, each of which has a part of the model.
  absl::Status SumOverStages(std::span<double> values, const OpLabel& label);
  absl::StatusOr<double> MostOfStages(double mine, const OpLabel& label);
  // Whether any rank of the world says so.
  absl::StatusOr<bool> Any(bool mine, const OpLabel& label);
  // All ranks of the world are here, however long their disks take; while no checkpoint is written.
  absl::Status Meet(const OpLabel& label);

  // For the store's allocation.
  BucketParts PartsOf(const ParamBucket& bucket) const {
    return cadre::PartsOf(layout(), mesh_.rank(), bucket);
  }
  // Whether weights are there only while they are leased.
  bool gathers_weights() const { return layout().zero_stage == 3 && layout().world() > 1; }

  struct StoreOptions {
    Allocator* allocator = nullptr;  // of weights while they are gathered; outlives this
    int prefetch = 1;                // see ShardedWeights
  };
  // From now on sums the store's gradients as backward passes complete its buckets, and gathers its
  // weights. The store has been allocated with gradients and PartsOf.
  void Serve(ParameterStore& store, const StoreOptions& options);
  // Before the store goes.
  void Leave();
  // Before the passes of a step or an evaluation.
  void BeginPasses(ShardedWeights::Passes passes);
  // The part of each bucket whose gradients this rank will have summed, and updates.
  std::vector<Shard> OwnedShards() const;
  // The part of each bucket that is this rank's alone: ranks that hold the same share it out, and
  // each takes no more than it owns. For norms and checkpoints.
  std::vector<Shard> SoleShards() const;
  // After the passes of an evaluation. Says what went wrong in them.
  absl::Status EndPasses();
  // After those of a step, before gradients are read.
  absl::Status FinishGradients();
  // Over all ranks of the world.
  absl::StatusOr<double> SumOverWorld(double mine, const OpLabel& label);
  // After the update: every rank gets the weights that it keeps and others own.
  absl::Status GatherWeights();

  // One of the ranks that have the same samples: it writes of them.
  bool first_with_samples() const {
    return mesh_.place().tp == 0 && mesh_.place().cp == 0 && mesh_.place().pp == 0;
  }

  // Seconds spent waiting for gradients and weights so far.
  double blocked_seconds() const;

 private:
  template <typename T>
  absl::Status SumValues(Communicator* group, std::span<T> values, const OpLabel& label);
  // Who shares a bucket out, and who has the same shard of another copy; null: nobody.
  Communicator* ShardGroupOf(const ParamBucket& bucket) const;
  Communicator* CopyGroupOf(const ParamBucket& bucket) const;
  Communicator* TokensGroup() const;

  Mesh mesh_;
  ParallelGroups groups_;
  HostAllocator allocator_;
  ParameterStore* store_ = nullptr;
  std::optional<GradientReducer> reducer_;
  std::optional<ShardedWeights> weights_;
  double gather_seconds_ = 0;
};

}  // namespace cadre
