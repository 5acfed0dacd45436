// GradientReducer: sums gradients over data-parallel ranks, a bucket at a time, while the backward
// pass still runs.
//
//   GradientReducer reducer(store, options);       // listens to the store's buckets
//   ... backward passes; a bucket's reduction starts when its last weight closure has run ...
//   CADRE_RETURN_IF_ERROR(reducer.Finish());       // before gradients are read
//
// One thread (the one that runs the backward pass). The store and the groups outlive it.
#pragma once

#include <functional>
#include <vector>

#include "core/parameters.h"
#include "core/status.h"
#include "parallel/communicator.h"
#include "parallel/shard.h"

namespace cadre {

class GradientReducer {
 public:
  struct Options {
    // Over which ranks a bucket's gradients are summed; null: over none.
    std::function<Communicator*(const ParamBucket&)> group_of;
    // Each rank gets its shard of the sum alone; the rest of a bucket's gradients is then garbage.
    // Else all get all.
    bool scatter = false;
  };

  // `store` has been allocated, with gradients.
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
  void Start(int bucket);

  ParameterStore& store_;
  const Options options_;
  std::vector<Communicator*> groups_;  // by bucket
  std::vector<WorkPtr> works_;         // by bucket, of this step
  int64_t bytes_ = 0;
  double blocked_seconds_ = 0;
};

}  // namespace cadre
