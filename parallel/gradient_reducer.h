// GradientReducer: sums gradients over data-parallel ranks, a bucket at a time, while the backward
// pass still runs.
//
//   GradientReducer reducer(store, options);       // listens to the store's buckets
//   ... backward passes; a bucket's reduction starts when its last weight closure has run ...
//   CADRE_RETURN_IF_ERROR(reducer.Finish());       // before gradients are read
//
// A bucket that the store has whole is reduced once, after the step's last pass. One whose
// gradients are shared out (ZeRO-2: Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training
// Trillion Parameter Models", 2020) is reduced after every pass, and the sums of the passes are
// added in their order; its full gradients are alive from their first use in a pass until they are
// reduced, and of such reductions kMaxInFlight at most are under way.
//
// One thread (the one that runs the backward pass). The store and the groups outlive it.
#pragma once

#include <deque>
#include <functional>
#include <vector>

#include "core/parameters.h"
#include "core/status.h"
#include "parallel/communicator.h"
#include "parallel/shard.h"

namespace cadre {

class GradientReducer {
 public:
  static constexpr size_t kMaxInFlight = 2;

  struct Options {
    // Over which ranks a bucket's gradients are summed; null: over none.
    std::function<Communicator*(const ParamBucket&)> group_of;
    // The ranks that have the same shard of other copies (hybrid sharding): what group_of's ranks
    // summed is summed over these, too, once a step. Null, or absent: there are none.
    std::function<Communicator*(const ParamBucket&)> copies_of;
    // Of a bucket that the store has whole: each rank gets its shard of the sum alone; the rest of
    // the bucket's gradients is then garbage. Else all get all.
    bool scatter = false;
  };

  // `store` has been allocated, with gradients; what it shares out is cut by ShardOf over the
  // bucket's group.
  GradientReducer(ParameterStore& store, Options options);
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  // Waits for all buckets. A bucket that no backward pass completed is a broken invariant.
  absl::Status Finish();

  // What of a bucket this rank has the sum of.
  Shard shard(int bucket) const;
  // Bytes of gradients handed to reductions since the last Finish began.
  int64_t bytes() const { return bytes_; }
  // Seconds that Finish waited, over all its calls: the part of reductions that nothing hid.
  double blocked_seconds() const { return blocked_seconds_; }

 private:
  // The sum of one pass on its way to this rank's shard.
  struct PassSum {
    int bucket;
    Tensor mine;
    WorkPtr work;
  };

  void Start(int bucket);
  void StartPass(int bucket);
  void LandOldest();
  absl::Status SumCopies();

  ParameterStore& store_;
  const Options options_;
  std::vector<Communicator*> groups_, copies_;  // by bucket
  std::vector<WorkPtr> works_;                  // by bucket, of this step
  std::vector<bool> complete_;                  // by bucket, in this step
  std::deque<PassSum> in_flight_;
  absl::Status pass_status_;  // the first failure of this step's passes
  int64_t bytes_ = 0;
  double blocked_seconds_ = 0;
};

}  // namespace cadre
