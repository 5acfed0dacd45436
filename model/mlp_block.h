// The feed-forward half of a layer: a dense gated MLP, or a mixture of experts with an optional
// shared expert that every token visits.
//
// Over tensor-parallel ranks each has its columns of the MLP, over expert-parallel ranks its
// experts. x and the result are the tokens that the rank has between blocks, its run of them or
// all. The shared expert is computed while tokens travel to their experts.
//
// Immutable; callable from any thread with a Context of its own.
#pragma once

#include <optional>
#include <string>

#include "core/ops/activation.h"
#include "core/tape.h"
#include "model/decoder_spec.h"
#include "model/param_builder.h"
#include "moe/moe_layer.h"
#include "parallel/row_parallel.h"

namespace cadre {

class MlpBlock {
 public:
  // Registers {gate,up,down}_proj under `prefix` ("model.layers.0.mlp.").
  MlpBlock(int64_t hidden, const MlpSpec& spec, const std::string& prefix, ParamBuilder& params);

  // x [tokens, D] -> [tokens, D]
  PendingOutput Forward(Context& ctx, const Var& x, int layer) const;

 private:
  BlockTokens tokens_;
  ParamId gate_up_, gate_up_bias_ = kNoParam, down_, down_bias_ = kNoParam;
  ops::SwiGluArgs activation_;
};

class MoeBlock {
 public:
  // prefix: "model.layers.0."
  MoeBlock(int64_t hidden, const MoeSpec& spec, const std::string& prefix, ParamBuilder& params);

  struct Output {
    PendingOutput y;  // [tokens, D]
    moe::Routing routing;
  };
  Output Forward(Context& ctx, const Var& x, std::span<const int32_t> offsets,
                 const moe::RouterOptions& options, int layer) const;

  const moe::Router& router() const { return routed_.router(); }

 private:
  moe::MoeLayer routed_;
  std::optional<MlpBlock> shared_;
  ParamId shared_gate_ = kNoParam;  // [1, D]
};

}  // namespace cadre
