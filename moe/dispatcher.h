// Dispatcher: takes tokens to the rows that the experts of this process work on, and their results
// back. Here within one process; an all-to-all over expert-parallel ranks is another one of these.
//
// Immutable; callable from any thread with a Context of its own. T tokens, D model, R rows.
#pragma once

#include "core/ops/permute.h"
#include "moe/router.h"

namespace cadre::moe {

struct Dispatched {
  Var rows;                   // [R, D] sorted by expert, in token order within one
  ops::PermutationPlan plan;  // plan.offsets [E + 1]
};

class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  virtual Dispatched Dispatch(Context& ctx, const Var& x, const Routing& routing) const = 0;
  // rows [R, D] -> [T, D]: each token's experts, weighted, summed in ascending id in fp32 (f64).
  virtual Var Combine(Context& ctx, const Var& rows, const Routing& routing,
                      const Dispatched& dispatched) const = 0;
};

class LocalDispatcher : public Dispatcher {
 public:
  explicit LocalDispatcher(int64_t experts) : experts_(experts) {}

  Dispatched Dispatch(Context& ctx, const Var& x, const Routing& routing) const override;
  Var Combine(Context& ctx, const Var& rows, const Routing& routing,
              const Dispatched& dispatched) const override;

 private:
  int64_t experts_;
};

}  // namespace cadre::moe
