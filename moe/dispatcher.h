// Dispatcher: takes tokens to the rows that the experts of this rank work on, and their results
// back. One for each way of sharing experts out:
//
//   LocalDispatcher     every rank has all experts, whole: its own tokens meet them, nothing
//   travels GatherDispatcher    every rank has its columns of all experts: tokens are gathered over
//   them AllToAllDispatcher  every rank has its own experts: rows travel to them and back
//
// Tokens are this rank's alone wherever they come from (parallel/token_ops.h), so that no rank
// sends what another one also sends: the duplicate-token drop of tensor-expert-data parallelism
// (Singh et al., "A Hybrid Tensor-Expert-Data Parallelism Approach to Optimize Mixture-of-Experts
// Training", 2023), whose all-to-all moves 1/tp of the bytes.
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
  Var rows;                      // [R, D] sorted by this rank's experts
  std::vector<int32_t> offsets;  // [experts of this rank + 1]

  Var weights;                // [T, k] of the tokens that `plan` is of
  ops::PermutationPlan plan;  // tokens to rows, by expert
  // Of an all-to-all: rows to and from each rank, and those that came by expert.
  RowCounts counts;
  ops::PermutationPlan arrived;
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  virtual Dispatched Dispatch(Context& ctx, const Var& x, const Routing& routing,
                              int layer) const = 0;
  // rows [R, D] -> [T, D]: each token's experts, weighted, summed in ascending id in fp32 (f64).
  virtual Var Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
                      int layer) const = 0;
};

class LocalDispatcher : public Dispatcher {
 public:
  explicit LocalDispatcher(int64_t experts) : experts_(experts) {}
  Dispatched Dispatch(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  Var Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
              int layer) const override;

 private:
  int64_t experts_;
};

class GatherDispatcher : public Dispatcher {
 public:
  explicit GatherDispatcher(int64_t experts) : experts_(experts) {}
  Dispatched Dispatch(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  Var Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
              int layer) const override;

 private:
  int64_t experts_;
};

class AllToAllDispatcher : public Dispatcher {
 public:
  // Rank r of `ranks` has the experts from r * experts / ranks on.
  AllToAllDispatcher(int64_t experts, int ranks) : experts_(experts), ranks_(ranks) {}
  Dispatched Dispatch(Context& ctx, const Var& x, const Routing& routing, int layer) const override;
  Var Combine(Context& ctx, const Var& rows, const Dispatched& dispatched,
              int layer) const override;

 private:
  int64_t experts_;
  int ranks_;
};

// The one that fits how `part` shares experts out.
std::shared_ptr<const Dispatcher> MakeDispatcher(int64_t experts, const ModelPart& part);

}  // namespace cadre::moe
