// Attention of one layer: projections, query and key norms, rotation, attention over the batch or
// over paged blocks, output projection. Two forms: plain (grouped queries) and latent (MLA).
//
// Over tensor-parallel ranks each has its heads. x and the result are the tokens that the rank has
// between blocks, its run of them or all; what lies between is over all tokens. Where there are
// fewer KV heads than ranks, every rank projects all of them and attends to the one that its heads
// share.
//
// Over context-parallel ranks each has some tokens of every sequence (Batch::context). Queries
// stay; keys and values, or the latents and the rotary key that they are made of, are gathered, or
// keys and values go around (parallel/ring_attention.h).
//
// Blocks hold parameter ids and numbers only: copyable, immutable, callable from any thread with a
// Context of its own.
#pragma once

#include "core/ops/rope_table.h"
#include "core/tape.h"
#include "model/batch.h"
#include "model/decoder_spec.h"
#include "model/param_builder.h"
#include "parallel/row_parallel.h"

namespace cadre {

struct AttentionInputs {
  const Batch& batch;
  const ops::RopeTable& rope;
  int layer;
};

struct KeyGroup {
  Var k, v;  // [T, heads, dh], [T, heads, dv]
};

class AttentionBlock {
 public:
  // Registers its parameters under `prefix` ("model.layers.0.self_attn.").
  AttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention, const std::string& prefix,
                 ParamBuilder& params);

  // x [tokens, D] -> [tokens, D]
  PendingOutput Forward(Context& ctx, const Var& x, const AttentionInputs& in) const;

 private:
  struct Projected {
    Var q, k, v;  // [T, heads * dh]
  };
  void MakeProjections(const DecoderSpec& spec, const std::string& prefix, ParamBuilder& params);
  Projected Project(Context& ctx, const Var& x) const;
  Var Normalized(Context& ctx, const Var& x, ParamId norm, int64_t all_heads) const;
  // The heads of `x` that this rank attends to.
  Var OwnKvHeads(Context& ctx, const Var& x) const;
  // Into how many groups of heads attention is cut, so that keys and values of one travel while
  // another's are read. Sinks are one parameter, whose gradient is reported once.
  int HeadGroups(const AttentionInputs& in) const;

  BlockTokens tokens_;
  AttentionSpec spec_;        // of the model
  AttentionSpec local_;       // of this rank: its heads
  int64_t kv_projected_ = 0;  // KV heads that this rank projects
  int64_t kv_first_ = 0;      // of them, the first that it attends to
  float norm_eps_;
  ParamId qkv_ = kNoParam, qkv_bias_ = kNoParam, q_norm_ = kNoParam, k_norm_ = kNoParam;
  ParamId kv_ = kNoParam, kv_bias_ = kNoParam;  // where KV heads are not cut; then qkv_ is q alone
  ParamId sinks_ = kNoParam, output_, output_bias_ = kNoParam;
};

// A cache holds the keys and values of each head as attention reads them, not the latents: simpler,
// and the same bits as the batch; it costs H (dh + dv) elements a token instead of kv_rank +
// rope_dim.
class LatentAttentionBlock {
 public:
  LatentAttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention,
                       const std::string& prefix, ParamBuilder& params);

  PendingOutput Forward(Context& ctx, const Var& x, const AttentionInputs& in) const;

 private:
  Var Queries(Context& ctx, const Var& x, const OpLabel& label) const;  // [T, heads, dh]
  // Keys and values of latent [T, kv_rank] and shared_key [T, rope_dim].
  KeyGroup HeadsOf(Context& ctx, const Var& latent, const Var& shared_key) const;

  BlockTokens tokens_;
  AttentionSpec spec_;  // with this rank's heads
  ParamId q_ = kNoParam, q_a_ = kNoParam, q_norm_ = kNoParam, q_b_ = kNoParam;
  ParamId kv_a_, kv_norm_, kv_b_, output_;
};

}  // namespace cadre
