#include "training/layer_memory.h"

#include <algorithm>

namespace cadre {
namespace {

// Context-parallel ranks gather keys and values, but for the ring.
int64_t GatheredParts(const Layout& layout) { return layout.ring ? 1 : layout.cp; }

// The stream (own tokens) and its norm, which the projection reads of all tokens; the fused
// projection, whose parts are rotated in place of it; queries and keys once more where they are
// normed; the output.
int64_t PlainAttention(const DecoderSpec& spec, const AttentionSpec& a, const Layout& layout,
                       const RankTokens& tokens) {
  const int64_t heads = a.heads / layout.tp;
  const int64_t kv_heads = std::max<int64_t>(1, a.kv_heads / layout.tp);
  const int64_t queries = heads * a.head_dim, keys = kv_heads * a.head_dim;
  int64_t each = spec.hidden + queries + heads * a.value_dim;
  if (a.qk_norm != QkNorm::kNone) each += queries + keys;
  const int64_t gathered = keys + kv_heads * a.value_dim;
  return tokens.own * spec.hidden + tokens.all * (each + gathered * GatheredParts(layout));
}

// Latents are made and normed of own tokens, then gathered, those of keys and values before they
// are made into heads.
int64_t LatentAttention(const DecoderSpec& spec, const AttentionSpec& a, const Layout& layout,
                        const RankTokens& tokens) {
  const int64_t heads = a.heads / layout.tp, latents = a.latent.q_rank + a.latent.kv_rank;
  const int64_t values = heads * a.value_dim, queries = heads * a.head_dim;
  const int64_t each = a.latent.q_rank + queries + values;
  const int64_t gathered = a.latent.kv_rank + queries + values;
  return tokens.own * (2 * spec.hidden + latents) +
         tokens.all * (each + gathered * GatheredParts(layout));
}

// The stream, its norm, gate and up side by side, their product.
int64_t Mlp(const DecoderSpec& spec, int64_t intermediate, const Layout& layout,
            const RankTokens& tokens) {
  return tokens.own * spec.hidden + tokens.all * (spec.hidden + 3 * intermediate / layout.tp);
}

// The stream, its norm, and for each chosen expert the permuted row, gate and up, their product and
// the expert's output row. Experts get as many rows as they send, where their load is even.
int64_t Moe(const DecoderSpec& spec, const MoeSpec& moe, const Layout& layout,
            const RankTokens& tokens) {
  const int64_t rows = tokens.all * layout.etp / layout.tp * moe.router.top_k;
  int64_t elements =
      tokens.own * 2 * spec.hidden + rows * (2 * spec.hidden + 3 * moe.intermediate / layout.etp);
  if (moe.shared != SharedExpert::kNone) {
    elements += tokens.own * spec.hidden +
                tokens.all * (spec.hidden + 3 * moe.shared_intermediate / layout.tp);
  }
  return elements;
}

}  // namespace

RankTokens TokensOfRank(const Layout& layout, int64_t tokens) {
  const int64_t all = tokens / layout.cp;
  return {.all = all, .own = layout.sequence_parallel ? all / layout.tp : all};
}

int64_t SavedElements(const DecoderSpec& spec, const LayerSpec& layer, const Layout& layout,
                      const RankTokens& tokens) {
  const AttentionSpec& a = layer.attention;
  const int64_t attention = a.latent.kv_rank > 0 ? LatentAttention(spec, a, layout, tokens)
                                                 : PlainAttention(spec, a, layout, tokens);
  return attention + (layer.is_moe ? Moe(spec, layer.moe, layout, tokens)
                                   : Mlp(spec, layer.mlp.intermediate, layout, tokens));
}

}  // namespace cadre
