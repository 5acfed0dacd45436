#include "model/model_cost.h"

#include <algorithm>

namespace cadre {
namespace {

struct Counts {
  int64_t matrix = 0;  // weights of matrix products
  int64_t other = 0;   // norms, biases, sinks
  Counts& operator+=(const Counts& o) {
    matrix += o.matrix;
    other += o.other;
    return *this;
  }
};

Counts LatentCounts(const AttentionSpec& a, int64_t hidden) {
  const LatentSpec& l = a.latent;
  Counts c;
  int64_t query = a.heads * a.head_dim;
  c.matrix = l.q_rank > 0 ? l.q_rank * (hidden + query) : hidden * query;
  c.matrix += hidden * (l.kv_rank + l.rope_dim);
  c.matrix += l.kv_rank * a.heads * (l.nope_dim + a.value_dim);
  c.matrix += hidden * a.heads * a.value_dim;
  c.other = l.q_rank + l.kv_rank;
  return c;
}

Counts AttentionCounts(const AttentionSpec& a, int64_t hidden) {
  if (a.latent.kv_rank > 0) return LatentCounts(a, hidden);
  Counts c;
  int64_t qkv = (a.heads + 2 * a.kv_heads) * a.head_dim;
  c.matrix = hidden * (qkv + a.heads * a.head_dim);
  if (a.qkv_bias) c.other += qkv;
  if (a.output_bias) c.other += hidden;
  if (a.qk_norm == QkNorm::kHead) c.other += 2 * a.head_dim;
  if (a.qk_norm == QkNorm::kProjection) c.other += (a.heads + a.kv_heads) * a.head_dim;
  if (a.sinks) c.other += a.heads;
  return c;
}

// experts: how many of a mixture's experts are counted.
Counts MlpCounts(const LayerSpec& layer, int64_t hidden, int64_t experts) {
  Counts c;
  if (!layer.is_moe) {
    c.matrix = 3 * hidden * layer.mlp.intermediate;
    if (layer.mlp.bias) c.other = 2 * layer.mlp.intermediate + hidden;
    return c;
  }
  const MoeSpec& m = layer.moe;
  c.matrix = hidden * m.router.experts + 3 * hidden * m.intermediate * experts +
             3 * hidden * m.shared_intermediate;
  if (m.shared == SharedExpert::kGated) c.matrix += hidden;
  if (m.bias) c.other += experts * (2 * m.intermediate + hidden);
  if (m.router.logit_bias || m.router.kind == moe::RouterKind::kSigmoidBias) {
    c.other += m.router.experts;
  }
  return c;
}

Counts LayerCounts(const LayerSpec& layer, int64_t hidden, bool active) {
  Counts c = AttentionCounts(layer.attention, hidden);
  c += MlpCounts(layer, hidden, active ? layer.moe.router.top_k : layer.moe.router.experts);
  c.other += 2 * hidden;
  return c;
}

}  // namespace

ParameterCounts CountParameters(const DecoderSpec& spec) {
  ParameterCounts counts{.embedding = spec.vocab * spec.hidden};
  int64_t outside = counts.embedding * (spec.tied ? 1 : 2) + spec.hidden;
  counts.total = counts.active = outside;
  for (const LayerSpec& layer : spec.layers) {
    Counts all = LayerCounts(layer, spec.hidden, false);
    Counts active = LayerCounts(layer, spec.hidden, true);
    counts.total += all.matrix + all.other;
    counts.active += active.matrix + active.other;
  }
  return counts;
}

double ModelFlopsPerToken(const DecoderSpec& spec, int64_t sequence) {
  double weights = static_cast<double>(spec.vocab) * static_cast<double>(spec.hidden);
  double attention = 0.0;
  for (const LayerSpec& layer : spec.layers) {
    weights += static_cast<double>(LayerCounts(layer, spec.hidden, true).matrix);
    const AttentionSpec& a = layer.attention;
    double window = static_cast<double>(a.window > 0 ? std::min(a.window, sequence) : sequence);
    // Token i sees min(i + 1, window) keys; the mean over the sequence.
    double keys = window - window * (window - 1.0) / (2.0 * static_cast<double>(sequence));
    attention += static_cast<double>(a.heads * (a.head_dim + a.value_dim)) * keys;
  }
  return 6.0 * (weights + attention);
}

int64_t KvBytesPerToken(const DecoderSpec& spec, int64_t element_bytes) {
  int64_t elements = 0;
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    elements += a.kv_heads * (a.head_dim + a.value_dim);
  }
  return elements * element_bytes;
}

}  // namespace cadre
