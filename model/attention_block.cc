#include "model/attention_block.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "core/ops/activation.h"
#include "core/ops/attention.h"
#include "core/ops/columns.h"
#include "core/ops/elementwise.h"
#include "core/ops/kv_copy.h"
#include "core/ops/matmul.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"
#include "model/context_keys.h"
#include "parallel/combine_ranks.h"
#include "parallel/ring_attention.h"

namespace cadre {
namespace {

// Of the norms of latents; DeepSeek's code does not take it from the config.
constexpr float kLatentNormEps = 1e-6f;

// Over pages, for whoever looks at the attention.
Tensor AttendObserved(Context& ctx, const Tensor& q, const ops::AttentionArgs& args,
                      const AttentionInputs& in) {
  const ops::KvView& view = in.batch.kv[in.layer].view;
  const BatchObserver& observer = in.batch.observer;
  const bool wide = q.dtype() == DType::kF64;
  ops::AttentionTold told{.lse = ctx.Empty({q.dim(0), q.dim(1)}, wide ? DType::kF64 : DType::kF32)};
  std::vector<int32_t> rows;
  if (!wide && !observer.sequences.empty()) {
    rows.assign(view.context_lengths.size(), -1);
    int32_t longest = 0, next = 0;
    for (const int32_t sequence : observer.sequences) {
      rows[static_cast<size_t>(sequence)] = next++;
      longest = std::max(longest, view.context_lengths[static_cast<size_t>(sequence)]);
    }
    constexpr int64_t kTile = ops::kAttentionKeyTile;
    told.scores = ctx.Empty({next, q.dim(1), (longest + kTile - 1) / kTile * kTile}, DType::kF32);
    told.score_rows = rows;
  }
  const Tensor out = ops::PagedAttention(ctx, q, view, args, in.batch.query_positions, told);
  observer.call(ctx, {in.layer,
                      {.q = q,
                       .kv = view,
                       .scale = args.scale,
                       .sliding_window = args.sliding_window,
                       .sinks = args.sinks,
                       .lse = told.lse},
                      told.scores});
  return out;
}

// q [T, H, dh]; k and v of all tokens that ranks share -> [T, H * dv].
Var Attend(Context& ctx, const Var& q, const Var& k, const Var& v, const AttentionSpec& spec,
           ParamId sinks, const AttentionInputs& in) {
  ops::AttentionArgs args{.scale = static_cast<float>(spec.scale),
                          .sliding_window = static_cast<int>(spec.window),
                          .sinks = sinks,
                          .offsets = in.batch.offsets,
                          .workers = in.batch.attention_workers,
                          .quantization = in.batch.kv_quantization};
  if (in.batch.context.has_value()) {
    args.offsets = in.batch.context->offsets;
    args.query_rows = in.batch.context->tokens;
  }
  Shape flat{q.value.dim(0), q.value.dim(1) * spec.value_dim};
  if (in.batch.kv.empty()) return ops::Attention(ctx, q, k, v, args).Reshape(flat);
  const KvLayer& kv = in.batch.kv[in.layer];
  ops::WriteKv(ctx, {.k = k.value,
                     .v = v.value,
                     .slots = kv.slots,
                     .data = kv.view.data,
                     .layout = kv.view.layout});
  if (!in.batch.observer.call) {
    return Var{
        ops::PagedAttention(ctx, q.value, kv.view, args, in.batch.query_positions).Reshape(flat)};
  }
  return Var{AttendObserved(ctx, q.value, args, in).Reshape(flat)};
}

// k and v of the batch's tokens, the keys not rotated yet.
void KeepUnrotated(Context& ctx, const Tensor& k, const Tensor& v, const AttentionInputs& in) {
  if (in.batch.kv.empty()) return;
  const KvLayer& kv = in.batch.kv[in.layer];
  if (kv.unrotated_slots.empty()) return;
  ops::WriteKv(ctx, {.k = k,
                     .v = v,
                     .slots = kv.unrotated_slots,
                     .data = kv.view.data,
                     .layout = kv.view.layout});
  for (const KvRotation& rotation : kv.rotations) {
    const ops::KeptTokens kept = ops::ReadKv(ctx, {rotation.from, kv.view.data, kv.view.layout});
    std::vector<int32_t> places(rotation.from.size());
    std::iota(places.begin(), places.end(), 0);
    const int64_t count = static_cast<int64_t>(places.size());
    const Var rotated = ops::Rope(
        ctx, Var{ops::CastTensor(ctx, kept.k, k.dtype())},
        {.positions = Tensor::Of<int32_t>(*ctx.allocator, {count}, places), .table = &in.rope});
    ops::WriteKv(ctx, {.k = rotated.value,
                       .v = ops::CastTensor(ctx, kept.v, v.dtype()),
                       .slots = rotation.to,
                       .data = kv.view.data,
                       .layout = kv.view.layout});
  }
}

bool InRing(const Context& ctx) { return ctx.groups != nullptr && ctx.groups->ring; }

// q [T, H, dh], k [T, K, dh], v [T, K, dv] of the rank's tokens -> [T, H * dv].
Var AttendInRing(Context& ctx, const Var& q, const Var& k, const Var& v, const AttentionSpec& spec,
                 const AttentionInputs& in) {
  CADRE_CHECK(in.batch.kv_quantization == ops::KvQuantization::kNone,
              "ring attention over quantized keys and values");
  const Var out = RingAttention(ctx, q, k, v,
                                {.scale = static_cast<float>(spec.scale),
                                 .sliding_window = static_cast<int>(spec.window),
                                 .shares = in.batch.context->ring,
                                 .group = ContextGroup(ctx),
                                 .label = {"ring attention", in.layer}});
  return out.Reshape({q.value.dim(0), q.value.dim(1) * spec.value_dim});
}

// Each group of heads while the next one's keys and values travel.
Var AttendByGroups(Context& ctx, const Var& q, PendingKeys& keys, const AttentionSpec& spec,
                   ParamId sinks, const AttentionInputs& in) {
  if (keys.groups() == 1) {
    const KeyGroup all = keys.Wait(ctx, 0);
    return Attend(ctx, q, all.k, all.v, spec, sinks, in);
  }
  const int64_t tokens = q.value.dim(0), share = spec.heads / spec.kv_heads;
  std::vector<int64_t> columns;
  for (int g = 0; g < keys.groups(); ++g) columns.push_back(keys.heads(g) * share * spec.head_dim);
  const std::vector<Var> queries =
      ops::SplitColumns(ctx, q.Reshape({tokens, spec.heads * spec.head_dim}), columns);
  std::vector<Var> outs;
  for (int g = 0; g < keys.groups(); ++g) {
    const KeyGroup group = keys.Wait(ctx, g);
    const Var own =
        queries[static_cast<size_t>(g)].Reshape({tokens, keys.heads(g) * share, spec.head_dim});
    outs.push_back(Attend(ctx, own, group.k, group.v, spec, sinks, in));
  }
  return ops::ConcatColumns(ctx, outs);
}

}  // namespace

AttentionBlock::AttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention,
                               const std::string& prefix, ParamBuilder& params)
    : tokens_(params.part()),
      spec_(attention),
      local_(attention),
      norm_eps_(static_cast<float>(spec.norm_eps)) {
  const ModelPart& part = params.part();
  const int64_t q = spec_.heads * spec_.head_dim;
  CADRE_CHECK(spec_.heads % part.tp == 0, "{} heads over {} ranks", spec_.heads, part.tp);
  local_.heads = spec_.heads / part.tp;
  MakeProjections(spec, prefix, params);
  if (spec_.sinks) {
    sinks_ = params.Add({.name = prefix + "sinks",
                         .shape = {local_.heads},
                         .sources = {{.tensor = prefix + "sinks",
                                      .shape = {spec_.heads},
                                      .block = part.Rows(spec_.heads)}},
                         .init = params.Normal(),
                         .decay = DecayKind::kNoDecay});
  }
  output_ = params.Matrix(prefix + "o_proj.weight", spec.hidden, q, part.Columns(q));
  if (spec_.output_bias) {
    output_bias_ = params.Bias(prefix + "o_proj.bias", {{prefix + "o_proj.bias", spec.hidden}},
                               /*partial=*/true);
  }
}

void AttentionBlock::MakeProjections(const DecoderSpec& spec, const std::string& prefix,
                                     ParamBuilder& params) {
  const ModelPart& part = params.part();
  const int64_t q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
  const bool cut = spec_.kv_heads % part.tp == 0;
  const ParamBlock kv_block = cut ? part.Rows(kv) : ParamBlock{};
  local_.kv_heads = cut ? spec_.kv_heads / part.tp : 1;
  kv_projected_ = cut ? local_.kv_heads : spec_.kv_heads;
  kv_first_ = cut ? 0 : part.tp_rank * spec_.kv_heads / part.tp;
  const auto sources = [&](const std::string& kind, bool with_q, bool with_kv) {
    std::vector<SourceRows> rows;
    if (with_q) rows.push_back({prefix + "q_proj." + kind, q, part.Rows(q)});
    if (with_kv) rows.push_back({prefix + "k_proj." + kind, kv, kv_block});
    if (with_kv) rows.push_back({prefix + "v_proj." + kind, kv, kv_block});
    return rows;
  };
  qkv_ = params.Matrix(prefix + "qkv_proj.weight", sources("weight", true, cut), spec.hidden);
  if (!cut) {
    kv_ = params.Matrix(prefix + "kv_proj.weight", sources("weight", false, true), spec.hidden,
                        /*partial=*/true);
  }
  if (spec_.qkv_bias) {
    qkv_bias_ = params.Bias(prefix + "qkv_proj.bias", sources("bias", true, cut));
    if (!cut) {
      kv_bias_ = params.Bias(prefix + "kv_proj.bias", sources("bias", false, true),
                             /*partial=*/true);
    }
  }
  if (spec_.qk_norm == QkNorm::kNone) return;
  const bool head = spec_.qk_norm == QkNorm::kHead;
  q_norm_ = params.Norm(prefix + "q_norm.weight", head ? spec_.head_dim : q,
                        head ? ParamBlock{} : part.Rows(q), /*partial=*/true);
  k_norm_ = params.Norm(prefix + "k_norm.weight", head ? spec_.head_dim : kv,
                        head ? ParamBlock{} : kv_block, /*partial=*/true);
}

AttentionBlock::Projected AttentionBlock::Project(Context& ctx, const Var& x) const {
  const int64_t q = local_.heads * spec_.head_dim, kv = kv_projected_ * spec_.head_dim;
  Var first = ops::MatMul(ctx, x, {.weight = qkv_, .bias = qkv_bias_});
  std::vector<Var> parts;
  if (kv_ == kNoParam) {
    parts = ops::SplitColumns(ctx, first, std::vector<int64_t>{q, kv, kv});
    return {parts[0], parts[1], parts[2]};
  }
  const Var second = ops::MatMul(ctx, x, {.weight = kv_, .bias = kv_bias_});
  parts = ops::SplitColumns(ctx, second, std::vector<int64_t>{kv, kv});
  return {first, parts[0], parts[1]};
}

// x [T, heads * dh] -> [T, heads, dh].
Var AttentionBlock::Normalized(Context& ctx, const Var& x, ParamId norm, int64_t all_heads) const {
  const int64_t tokens = x.value.dim(0), heads = x.value.dim(1) / spec_.head_dim;
  const Shape by_head{tokens, heads, spec_.head_dim};
  if (spec_.qk_norm == QkNorm::kNone) return x.Reshape(by_head);
  if (spec_.qk_norm == QkNorm::kHead) {
    const Var rows = x.Reshape({tokens * heads, spec_.head_dim});
    return ops::RmsNorm(ctx, rows, {norm, norm_eps_}).Reshape(by_head);
  }
  ops::RmsNormArgs args{norm, norm_eps_};
  if (heads < all_heads) {
    args.width = all_heads * spec_.head_dim;
    args.combine = SumOver(TensorGroup(ctx), {"query and key norm"});
  }
  return ops::RmsNorm(ctx, x, args).Reshape(by_head);
}

Var AttentionBlock::OwnKvHeads(Context& ctx, const Var& x) const {
  if (kv_projected_ == local_.kv_heads) return x;
  const int64_t before = kv_first_ * spec_.head_dim, own = local_.kv_heads * spec_.head_dim;
  const int64_t after = kv_projected_ * spec_.head_dim - before - own;
  std::vector<int64_t> sizes;
  for (const int64_t size : {before, own, after}) {
    if (size > 0) sizes.push_back(size);
  }
  const Var flat = x.Reshape({x.value.dim(0), kv_projected_ * spec_.head_dim});
  const Var part = ops::SplitColumns(ctx, flat, sizes)[before > 0 ? 1 : 0];
  return part.Reshape({x.value.dim(0), local_.kv_heads, spec_.head_dim});
}

int AttentionBlock::HeadGroups(const AttentionInputs& in) const {
  const bool shared = in.batch.context.has_value();
  return shared && local_.kv_heads > 1 && sinks_ == kNoParam ? 2 : 1;
}

PendingOutput AttentionBlock::Forward(Context& ctx, const Var& x, const AttentionInputs& in) const {
  const OpLabel label = {"attention", in.layer};
  const Var all = tokens_.Enter(ctx, x, label);
  auto [q, k, v] = Project(ctx, all);
  // OLMoE clamps after the norms of queries and keys.
  const auto clamped = [&](const Var& y) {
    return spec_.clip_qkv > 0.0 ? ops::Clamp(ctx, y, static_cast<float>(spec_.clip_qkv)) : y;
  };
  const ops::RopeArgs rope{.positions = in.batch.positions, .table = &in.rope};
  k = OwnKvHeads(ctx, clamped(Normalized(ctx, k, k_norm_, spec_.kv_heads)));
  const Var unrotated = k;
  k = ops::Rope(ctx, k, rope);
  v = OwnKvHeads(ctx, clamped(v).Reshape({v.value.dim(0), kv_projected_, spec_.head_dim}));
  KeepUnrotated(ctx, unrotated.value, v.value, in);
  std::optional<PendingKeys> keys;
  if (!InRing(ctx)) keys.emplace(ctx, k, v, HeadGroups(in), in);
  q = ops::Rope(ctx, clamped(Normalized(ctx, q, q_norm_, spec_.heads)), rope);
  const Var out = keys.has_value() ? AttendByGroups(ctx, q, *keys, local_, sinks_, in)
                                   : AttendInRing(ctx, q, k, v, local_, in);
  const Var partial =
      ops::MatMul(ctx, out, {.weight = output_, .bias = BiasOnce(ctx, output_bias_)});
  return OutputOf(tokens_.Leave(ctx, partial, label));
}

LatentAttentionBlock::LatentAttentionBlock(const DecoderSpec& spec, const AttentionSpec& attention,
                                           const std::string& prefix, ParamBuilder& params)
    : tokens_(params.part()), spec_(attention) {
  const LatentSpec& l = spec_.latent;
  const ModelPart& part = params.part();
  const int64_t query = spec_.heads * spec_.head_dim;
  const int64_t key_value = spec_.heads * (l.nope_dim + spec_.value_dim);
  const int64_t value = spec_.heads * spec_.value_dim;
  if (l.q_rank > 0) {
    q_a_ = params.Matrix(prefix + "q_a_proj.weight", l.q_rank, spec.hidden);
    q_norm_ = params.Norm(prefix + "q_a_layernorm.weight", l.q_rank);
    q_b_ = params.Matrix(prefix + "q_b_proj.weight", query, l.q_rank, part.Rows(query));
  } else {
    q_ = params.Matrix(prefix + "q_proj.weight", query, spec.hidden, part.Rows(query));
  }
  kv_a_ = params.Matrix(prefix + "kv_a_proj_with_mqa.weight", l.kv_rank + l.rope_dim, spec.hidden);
  kv_norm_ = params.Norm(prefix + "kv_a_layernorm.weight", l.kv_rank);
  kv_b_ = params.Matrix(prefix + "kv_b_proj.weight", key_value, l.kv_rank, part.Rows(key_value));
  output_ = params.Matrix(prefix + "o_proj.weight", spec.hidden, value, part.Columns(value));
  CADRE_CHECK(spec_.heads % part.tp == 0, "{} heads over {} ranks", spec_.heads, part.tp);
  spec_.heads /= part.tp;
  spec_.kv_heads /= part.tp;
}

// Latents are made of what tokens the rank has and gathered: they are smaller than what they
// become.
Var LatentAttentionBlock::Queries(Context& ctx, const Var& x, const OpLabel& label) const {
  Var in = x;
  if (spec_.latent.q_rank > 0) {
    in = ops::RmsNorm(ctx, ops::MatMul(ctx, x, {.weight = q_a_}), {q_norm_, kLatentNormEps});
  }
  in = tokens_.Enter(ctx, in, label);
  const Var q = ops::MatMul(ctx, in, {.weight = spec_.latent.q_rank > 0 ? q_b_ : q_});
  return q.Reshape({in.value.dim(0), spec_.heads, spec_.head_dim});
}

KeyGroup LatentAttentionBlock::HeadsOf(Context& ctx, const Var& latent,
                                       const Var& shared_key) const {
  const LatentSpec& l = spec_.latent;
  const int64_t heads = spec_.heads, tokens = latent.value.dim(0);
  const std::vector<Var> copies(static_cast<size_t>(heads),
                                shared_key.Reshape({tokens, l.rope_dim}));
  const Var rotary = ops::ConcatColumns(ctx, copies);
  const Var kv = ops::MatMul(ctx, latent, {.weight = kv_b_});
  const std::vector<Var> parts =
      ops::SplitColumns(ctx, kv.Reshape({tokens * heads, l.nope_dim + spec_.value_dim}),
                        std::vector<int64_t>{l.nope_dim, spec_.value_dim});
  const std::vector<Var> key_parts = {parts[0], rotary.Reshape({tokens * heads, l.rope_dim})};
  return {ops::ConcatColumns(ctx, key_parts).Reshape({tokens, heads, spec_.head_dim}),
          parts[1].Reshape({tokens, heads, spec_.value_dim})};
}

PendingOutput LatentAttentionBlock::Forward(Context& ctx, const Var& x,
                                            const AttentionInputs& in) const {
  const LatentSpec& l = spec_.latent;
  const OpLabel label = {"attention", in.layer};
  const bool ring = InRing(ctx);
  const ops::RopeArgs rope{.positions = in.batch.positions, .table = &in.rope};

  std::vector<Var> parts = ops::SplitColumns(ctx, ops::MatMul(ctx, x, {.weight = kv_a_}),
                                             std::vector<int64_t>{l.kv_rank, l.rope_dim});
  Var latent = ops::RmsNorm(ctx, parts[0], {kv_norm_, kLatentNormEps});
  latent = tokens_.Enter(ctx, latent, label);
  // The rotary key is shared by all heads.
  Var shared_key = tokens_.Enter(ctx, parts[1], label);
  shared_key = ops::Rope(ctx, shared_key.Reshape({shared_key.value.dim(0), 1, l.rope_dim}), rope);
  PendingTokens latents, keys;
  if (!ring) latents = PendingTokens(ctx, latent, in);
  if (!ring) keys = PendingTokens(ctx, shared_key, in);
  ops::RopeArgs query_rope = rope;
  query_rope.offset = l.nope_dim;
  const Var q = ops::Rope(ctx, Queries(ctx, x, label), query_rope);
  if (!ring) latent = latents.Wait(ctx, in);
  if (!ring) shared_key = keys.Wait(ctx, in);
  const KeyGroup all = HeadsOf(ctx, latent, shared_key);
  const Var out = ring ? AttendInRing(ctx, q, all.k, all.v, spec_, in)
                       : Attend(ctx, q, all.k, all.v, spec_, kNoParam, in);
  const Var partial = ops::MatMul(ctx, out, {.weight = output_});
  return OutputOf(tokens_.Leave(ctx, partial, label));
}

}  // namespace cadre
