// Experts: the feed-forward networks of one mixture layer over rows sorted by expert.
//
// Immutable; callable from any thread with a Context of its own. R rows, D model, E experts, I
// intermediate.
#pragma once

#include <vector>

#include "core/ops/activation.h"
#include "core/tape.h"

namespace cadre::moe {

struct ExpertParams {
  ParamId gate_up = kNoParam;       // [E, 2 I, D], gate rows first
  ParamId gate_up_bias = kNoParam;  // [E, 2 I]
  ParamId down = kNoParam;          // [E, D, I]
  ParamId down_bias = kNoParam;     // [E, D]
};

class Experts {
 public:
  Experts(const ExpertParams& params, const ops::SwiGluArgs& activation)
      : params_(params), activation_(activation) {}

  // rows [R, D], expert e's are [offsets[e], offsets[e + 1]) -> [R, D]; a part of a sum where ranks
  // share an expert.
  Var Forward(Context& ctx, const Var& rows, const std::vector<int32_t>& offsets) const;

 private:
  ExpertParams params_;
  ops::SwiGluArgs activation_;
};

}  // namespace cadre::moe
