// Dispatcher: takes tokens to the rows that the experts of this rank work on, and their results
// back. MakeDispatcher picks one by how ranks share experts out:
//
//   ep   etp
//   1    1    LocalDispatcher     a rank has all experts, whole: nothing travels
//   1    > 1  GatherDispatcher    it has its columns of all experts: tokens are gathered over etp,
//                                 results summed and scattered
//   > 1  any  AllToAllDispatcher  it has its own experts, or its columns of them: rows travel over
//                                 ep, then are gathered over etp; results go the other way
//
// What these need: a rank's tokens are its own alone and as many as on every other rank of its
// pipeline position; to an all-to-all one more or less does no harm, nor does any number that
// Routing::most_tokens allows. So they are between blocks
// where tensor-parallel ranks split the tokens (parallel/token_ops.h). Ranks that hold the same
// tokens drop all but their run of them before Start and join them again after Combine
// (SplitDispatcher), or, where just these ranks share every expert, have all that they need
// (ReplicatedDispatcher). Then no rank sends what another one also sends: the duplicate-token drop
// of tensor-expert-data parallelism (Singh et al., "A Hybrid Tensor-Expert-Data Parallelism
// Approach to Optimize Mixture-of-Experts Training", 2023). The ranks that share an expert's
// columns all need its rows, and get them from one another after the all-to-all, which so moves
// 1/etp of the bytes that it would after gathering.
//
// How etp groups lie over tp, cp and dp does not matter: an etp group is any run of ranks.
//
// Immutable; callable from any thread with a Context of its own. T tokens, D model, R rows.
#pragma once

#include <memory>

#include "core/ops/permute.h"
#include "moe/router.h"
#include "parallel/model_part.h"
#include "parallel/token_ops.h"

namespace cadre::moe {

struct Dispatched {
  Var rows;                      // [R, D] sorted by this rank's experts; from Finish on
  std::vector<int32_t> offsets;  // [experts of this rank + 1]; from Finish on

  Var weights;                // [T, k] of the tokens that `plan` is of
  ops::PermutationPlan plan;  // tokens to rows, by expert
  int64_t split = 0;          // tokens of which those of `plan` are a run; 0: they are all
  // Of a gather: what is on its way to Finish.
  PendingVar tokens_coming, ids_coming, weights_coming;
  // Of an all-to-all: rows to and from each rank of ep, their number on each rank of etp, how many
  // of each expert came from each rank of both, and all of them by expert.
  PendingVar rows_coming;
  RowCounts counts;
  std::vector<int64_t> shared;
  Tensor received;  // i32 [etp ranks, ep ranks x experts of this rank]
  ops::PermutationPlan arrived;
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // x [T, D]. What is computed between the two runs beside the exchange, and its backward pass
  // beside the exchange of gradients.
  virtual Dispatched Start(Context& ctx, const Var& x, const Routing& routing, int layer) const = 0;
  virtual void Finish(Context& ctx, Dispatched& dispatched, int layer) const = 0;
  // rows [R, D] -> [T, D]: each token's experts, weighted, summed in ascending id in fp32 (f64).
  virtual PendingVar Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                             int layer) const = 0;
};

class LocalDispatcher : public Dispatcher {
 public:
  explicit LocalDispatcher(int64_t experts) : experts_(experts) {}
  Dispatched Start(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  void Finish(Context&, Dispatched&, int) const override {}
  PendingVar Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                     int layer) const override;

 private:
  int64_t experts_;
};

class GatherDispatcher : public Dispatcher {
 public:
  explicit GatherDispatcher(int64_t experts) : experts_(experts) {}
  Dispatched Start(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  void Finish(Context& ctx, Dispatched& dispatched, int layer) const override;
  PendingVar Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                     int layer) const override;

 private:
  int64_t experts_;
};

class AllToAllDispatcher : public Dispatcher {
 public:
  // Rank r of the `ranks` of ep has the experts from r * experts / ranks on.
  AllToAllDispatcher(int64_t experts, int ranks) : experts_(experts), ranks_(ranks) {}
  Dispatched Start(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  void Finish(Context& ctx, Dispatched& dispatched, int layer) const override;
  PendingVar Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                     int layer) const override;

 private:
  int64_t experts_;
  int ranks_;
};

// For tensor-parallel ranks with the same tokens, which have their columns of all experts.
class ReplicatedDispatcher : public Dispatcher {
 public:
  explicit ReplicatedDispatcher(int64_t experts) : local_(experts) {}
  Dispatched Start(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  void Finish(Context&, Dispatched&, int) const override {}
  PendingVar Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                     int layer) const override;

 private:
  LocalDispatcher local_;
};

// For tensor-parallel ranks with the same tokens: each has a run of them dispatched.
class SplitDispatcher : public Dispatcher {
 public:
  explicit SplitDispatcher(std::shared_ptr<const Dispatcher> own) : own_(std::move(own)) {}
  Dispatched Start(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  void Finish(Context& ctx, Dispatched& dispatched, int layer) const override {
    own_->Finish(ctx, dispatched, layer);
  }
  PendingVar Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                     int layer) const override;

 private:
  std::shared_ptr<const Dispatcher> own_;
};

// The one that fits how `part` shares experts out.
std::shared_ptr<const Dispatcher> MakeDispatcher(int64_t experts, const ModelPart& part);

}  // namespace cadre::moe
