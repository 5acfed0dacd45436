// Router: a token's scores -> the ids of its experts, their weights and the losses that balance
// them. The projection and everything after it run in fp32 (f64 on the reference path).
//
// Immutable; callable from any thread with a Context of its own. T tokens, D model, E experts.
#pragma once

#include <span>
#include <vector>

#include "core/ops/topk_gate.h"
#include "core/tape.h"
#include "moe/router_spec.h"

namespace cadre::moe {

struct RouterParams {
  ParamId weight = kNoParam;      // [E, D]
  ParamId bias = kNoParam;        // [E], where the projection has one
  ParamId correction = kNoParam;  // [E] fp32, where the choice is corrected; not trained
};

// What a step asks of routers. Coefficients of the losses are already divided by what the step
// divides by (its count of sequences or microbatches, its count of tokens); 0 leaves a loss out.
struct RouterOptions {
  double balance = 0.0;
  bool per_sequence = true;  // counts summed over one sequence; else over the batch
  double z = 0.0;
  double capacity_factor = 0.0;  // see moe/capacity.h; 0: no token is dropped
  // Tokens that a rank may bring which shares experts with this one; 0: as many as this one, or one
  // more.
  int64_t most_tokens = 0;
};

struct Routing {
  Tensor ids;               // i32 [T, top_k], ascending in each row; some may be ops::kDropped
                            // for a dispatcher
  Var weights;              // [T, top_k] fp32 (f64)
  std::vector<Var> losses;  // f64 [1] each
  Tensor logits;            // [T, E] fp32 (f64)
  int64_t dropped = 0;      // of ids, those over capacity
  int64_t most_tokens = 0;  // for a dispatcher: the options'
};

class Router {
 public:
  Router(const RouterSpec& spec, const RouterParams& params) : spec_(spec), params_(params) {}

  const RouterSpec& spec() const { return spec_; }
  const RouterParams& params() const { return params_; }

  // x [T, D]; offsets [S + 1] are the sequences, for the losses.
  Routing Route(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                const RouterOptions& options) const;

 private:
  RouterSpec spec_;
  RouterParams params_;
};

}  // namespace cadre::moe
