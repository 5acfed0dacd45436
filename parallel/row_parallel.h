// How a tensor-parallel block begins and ends: its tokens come in, and each rank's result is a part
// of a sum, to which a bias is added once.
#pragma once

#include "core/tape.h"
#include "parallel/groups.h"
#include "parallel/model_part.h"
#include "parallel/token_ops.h"

namespace cadre {

inline Communicator* TensorGroup(const Context& ctx) {
  return ctx.groups == nullptr ? nullptr : ctx.groups->tp;
}

// What a rank has between blocks <-> all tokens, of which it computes its part of the block.
class BlockTokens {
 public:
  explicit BlockTokens(const ModelPart& part) : split_(part.sequence_parallel) {}

  Var Enter(Context& ctx, const Var& x, const OpLabel& label) const {
    return StartExchange(ctx, x, {enter(), TensorGroup(ctx), label}).Wait(ctx);
  }
  // Of each rank's partial sums the sum.
  PendingVar Leave(Context& ctx, const Var& partial, const OpLabel& label) const {
    return StartExchange(ctx, partial, {leave(), TensorGroup(ctx), label});
  }

 private:
  TokenOp enter() const { return split_ ? TokenOp::kGather : TokenOp::kCopy; }
  TokenOp leave() const { return split_ ? TokenOp::kScatter : TokenOp::kReduce; }

  bool split_;
};

// `bias` on the group's first rank, kNoParam on the others, where the tape reports it as a
// parameter that gets nothing from this use. kNoParam stays that.
ParamId BiasOnce(Context& ctx, ParamId bias, const Communicator* group);
inline ParamId BiasOnce(Context& ctx, ParamId bias) {
  return BiasOnce(ctx, bias, TensorGroup(ctx));
}

}  // namespace cadre
