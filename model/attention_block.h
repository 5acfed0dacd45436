// Attention of one layer: projections, query and key norms, rotation, attention over the batch or
// over paged blocks, output projection. Two forms: plain (grouped queries) and latent (MLA).
//
// Blocks hold parameter ids and numbers only: copyable, immutable, callable from any thread with a
// Context of its own.
#pragma once

#include "core/ops/rope_table.h"
#include "core/tape.h"
#include "model/batch.h"
#include "model/decoder_spec.h"
#include "model/param_builder.h"

namespace cadre {

struct AttentionInputs {
  const Batch& batch;
  const ops::RopeTable& rope;
  int layer;
};

class AttentionBlock {
 public:
  // Registers its parameters under `prefix` ("model.layers.0.self_attn.").
  AttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention, const std::string& prefix,
                 ParamBuilder& params);

  Var Forward(Context& ctx, const Var& x, const AttentionInputs& in) const;  // x [T, D] -> [T, D]

 private:
  Var Normalized(Context& ctx, const Var& x, ParamId norm, int64_t heads) const;

  AttentionSpec spec_;
  float norm_eps_;
  ParamId qkv_, qkv_bias_ = kNoParam, q_norm_ = kNoParam, k_norm_ = kNoParam;
  ParamId sinks_ = kNoParam, output_, output_bias_ = kNoParam;
};

// A cache holds the keys and values of each head as attention reads them, not the latents: simpler,
// and the same bits as the batch; it costs H (dh + dv) elements a token instead of kv_rank +
// rope_dim.
class LatentAttentionBlock {
 public:
  LatentAttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention,
                       const std::string& prefix, ParamBuilder& params);

  Var Forward(Context& ctx, const Var& x, const AttentionInputs& in) const;

 private:
  Var Queries(Context& ctx, const Var& x) const;  // [T, H, dh]

  AttentionSpec spec_;
  ParamId q_ = kNoParam, q_a_ = kNoParam, q_norm_ = kNoParam, q_b_ = kNoParam;
  ParamId kv_a_, kv_norm_, kv_b_, output_;
};

}  // namespace cadre
