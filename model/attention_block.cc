#include "model/attention_block.h"

#include "core/ops/activation.h"
#include "core/ops/attention.h"
#include "core/ops/columns.h"
#include "core/ops/matmul.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"

namespace cadre {
namespace {

// Of the norms of latents; DeepSeek's code does not take it from the config.
constexpr float kLatentNormEps = 1e-6f;

// q [T, H, dh], k [T, K, dh], v [T, K, dv] -> [T, H * dv].
Var Attend(Context& ctx, const Var& q, const Var& k, const Var& v, const AttentionSpec& spec,
           ParamId sinks, const AttentionInputs& in) {
  ops::AttentionArgs args{.scale = static_cast<float>(spec.scale),
                          .sliding_window = static_cast<int>(spec.window),
                          .sinks = sinks,
                          .offsets = in.batch.offsets,
                          .workers = in.batch.attention_workers};
  Shape flat{q.value.dim(0), spec.heads * spec.value_dim};
  if (in.batch.kv.empty()) return ops::Attention(ctx, q, k, v, args).Reshape(flat);
  const KvLayer& kv = in.batch.kv[in.layer];
  ops::WriteKv(ctx, {.k = k.value,
                     .v = v.value,
                     .slots = kv.slots,
                     .data = kv.view.data,
                     .layout = kv.view.layout});
  return Var{
      ops::PagedAttention(ctx, q.value, kv.view, args, in.batch.query_positions).Reshape(flat)};
}

}  // namespace

AttentionBlock::AttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention,
                               const std::string& prefix, ParamBuilder& params)
    : spec_(attention), norm_eps_(static_cast<float>(spec.norm_eps)) {
  int64_t q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
  qkv_ = params.Matrix(prefix + "qkv_proj.weight",
                       {{prefix + "q_proj.weight", q},
                        {prefix + "k_proj.weight", kv},
                        {prefix + "v_proj.weight", kv}},
                       spec.hidden);
  if (spec_.qkv_bias) {
    qkv_bias_ = params.Bias(
        prefix + "qkv_proj.bias",
        {{prefix + "q_proj.bias", q}, {prefix + "k_proj.bias", kv}, {prefix + "v_proj.bias", kv}});
  }
  if (spec_.qk_norm != QkNorm::kNone) {
    bool head = spec_.qk_norm == QkNorm::kHead;
    q_norm_ = params.Norm(prefix + "q_norm.weight", head ? spec_.head_dim : q);
    k_norm_ = params.Norm(prefix + "k_norm.weight", head ? spec_.head_dim : kv);
  }
  if (spec_.sinks) {
    sinks_ = params.Add({.name = prefix + "sinks",
                         .shape = {spec_.heads},
                         .sources = {{prefix + "sinks", {spec_.heads}}},
                         .init = params.Normal(),
                         .decay = DecayKind::kNoDecay});
  }
  output_ = params.Matrix(prefix + "o_proj.weight", spec.hidden, q);
  if (spec_.output_bias) {
    output_bias_ = params.Bias(prefix + "o_proj.bias", {{prefix + "o_proj.bias", spec.hidden}});
  }
}

Var AttentionBlock::Normalized(Context& ctx, const Var& x, ParamId norm, int64_t heads) const {
  int64_t tokens = x.value.dim(0);
  Shape by_head{tokens, heads, spec_.head_dim};
  if (spec_.qk_norm == QkNorm::kNone) return x.Reshape(by_head);
  Var rows = spec_.qk_norm == QkNorm::kHead ? x.Reshape({tokens * heads, spec_.head_dim}) : x;
  return ops::RmsNorm(ctx, rows, {norm, norm_eps_}).Reshape(by_head);
}

Var AttentionBlock::Forward(Context& ctx, const Var& x, const AttentionInputs& in) const {
  int64_t q_size = spec_.heads * spec_.head_dim, kv_size = spec_.kv_heads * spec_.head_dim;
  Var qkv = ops::MatMul(ctx, x, {.weight = qkv_, .bias = qkv_bias_});
  std::vector<Var> parts =
      ops::SplitColumns(ctx, qkv, std::vector<int64_t>{q_size, kv_size, kv_size});
  Var q = Normalized(ctx, parts[0], q_norm_, spec_.heads);
  Var k = Normalized(ctx, parts[1], k_norm_, spec_.kv_heads);
  Var v = parts[2];
  // OLMoE clamps after the norms of queries and keys.
  if (spec_.clip_qkv > 0.0) {
    float limit = static_cast<float>(spec_.clip_qkv);
    q = ops::Clamp(ctx, q, limit);
    k = ops::Clamp(ctx, k, limit);
    v = ops::Clamp(ctx, v, limit);
  }
  v = v.Reshape({v.value.dim(0), spec_.kv_heads, spec_.head_dim});
  ops::RopeArgs rope{.positions = in.batch.positions, .table = &in.rope};
  q = ops::Rope(ctx, q, rope);
  k = ops::Rope(ctx, k, rope);
  Var out = Attend(ctx, q, k, v, spec_, sinks_, in);
  return ops::MatMul(ctx, out, {.weight = output_, .bias = output_bias_});
}

LatentAttentionBlock::LatentAttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention,
                                           const std::string& prefix, ParamBuilder& params)
    : spec_(attention) {
  const LatentSpec& l = spec_.latent;
  int64_t query = spec_.heads * spec_.head_dim;
  if (l.q_rank > 0) {
    q_a_ = params.Matrix(prefix + "q_a_proj.weight", l.q_rank, spec.hidden);
    q_norm_ = params.Norm(prefix + "q_a_layernorm.weight", l.q_rank);
    q_b_ = params.Matrix(prefix + "q_b_proj.weight", query, l.q_rank);
  } else {
    q_ = params.Matrix(prefix + "q_proj.weight", query, spec.hidden);
  }
  kv_a_ = params.Matrix(prefix + "kv_a_proj_with_mqa.weight", l.kv_rank + l.rope_dim, spec.hidden);
  kv_norm_ = params.Norm(prefix + "kv_a_layernorm.weight", l.kv_rank);
  kv_b_ = params.Matrix(prefix + "kv_b_proj.weight", spec_.heads * (l.nope_dim + spec_.value_dim),
                        l.kv_rank);
  output_ = params.Matrix(prefix + "o_proj.weight", spec.hidden, spec_.heads * spec_.value_dim);
}

Var LatentAttentionBlock::Queries(Context& ctx, const Var& x) const {
  Shape by_head{x.value.dim(0), spec_.heads, spec_.head_dim};
  if (spec_.latent.q_rank == 0) return ops::MatMul(ctx, x, {.weight = q_}).Reshape(by_head);
  Var latent = ops::MatMul(ctx, x, {.weight = q_a_});
  latent = ops::RmsNorm(ctx, latent, {q_norm_, kLatentNormEps});
  return ops::MatMul(ctx, latent, {.weight = q_b_}).Reshape(by_head);
}

Var LatentAttentionBlock::Forward(Context& ctx, const Var& x, const AttentionInputs& in) const {
  const LatentSpec& l = spec_.latent;
  int64_t tokens = x.value.dim(0), heads = spec_.heads;
  ops::RopeArgs rope{.positions = in.batch.positions, .table = &in.rope};

  // The rotary key is shared by all heads.
  Var kv_a = ops::MatMul(ctx, x, {.weight = kv_a_});
  std::vector<Var> parts =
      ops::SplitColumns(ctx, kv_a, std::vector<int64_t>{l.kv_rank, l.rope_dim});
  Var shared_key = ops::Rope(ctx, parts[1].Reshape({tokens, 1, l.rope_dim}), rope);
  std::vector<Var> copies(static_cast<size_t>(heads), shared_key.Reshape({tokens, l.rope_dim}));
  Var rotary = ops::ConcatColumns(ctx, copies);

  Var latent = ops::RmsNorm(ctx, parts[0], {kv_norm_, kLatentNormEps});
  Var kv = ops::MatMul(ctx, latent, {.weight = kv_b_});
  parts = ops::SplitColumns(ctx, kv.Reshape({tokens * heads, l.nope_dim + spec_.value_dim}),
                            std::vector<int64_t>{l.nope_dim, spec_.value_dim});
  std::vector<Var> key_parts = {parts[0], rotary.Reshape({tokens * heads, l.rope_dim})};
  Var k = ops::ConcatColumns(ctx, key_parts).Reshape({tokens, heads, spec_.head_dim});
  Var v = parts[1].Reshape({tokens, heads, spec_.value_dim});

  rope.offset = l.nope_dim;
  Var q = ops::Rope(ctx, Queries(ctx, x), rope);
  return ops::MatMul(ctx, Attend(ctx, q, k, v, spec_, kNoParam, in), {.weight = output_});
}

}  // namespace cadre
