#include "serving/step_cost.h"

#include <algorithm>

#include "model/model_cost.h"

namespace cadre {
namespace {

struct Kept {
  double bytes = 0, elements = 0;

  double each(DType dtype) const {
    return elements > 0 ? bytes / elements : static_cast<double>(SizeOf(dtype));
  }
};

size_t BytesOf(const ParameterStore& store, ParamId id, DType dtype) {
  const ParamSpec& spec = store.spec(id);
  const QuantizedParam* kept = store.quantized(id);
  if (kept == nullptr) {
    return static_cast<size_t>(spec.shape.numel()) * SizeOf(spec.fp32 ? DType::kF32 : dtype);
  }
  size_t bytes = 0;
  for (const auto& matrix : *kept) {
    for (const QuantizedMatrix& rows : matrix) bytes += rows.bytes();
  }
  return bytes;
}

// Of tokens at positions [context - tokens, context), the keys that each sees, in sum.
double KeysSeen(int64_t tokens, int64_t context, int64_t window) {
  const int64_t before = context - tokens;
  const int64_t growing = window == 0 ? tokens : std::clamp<int64_t>(window - before, 0, tokens);
  const auto steps = static_cast<double>(growing);
  return steps * static_cast<double>(before) + steps * (steps + 1) / 2 +
         static_cast<double>((tokens - growing) * window);
}

}  // namespace

WeightBytes WeightBytes::Of(const ParameterStore& store, DType dtype) {
  Kept layers, experts, head;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    if (spec.shape.rank() < 2 || (spec.layer < 0 && spec.use != ParamUse::kHead)) continue;
    Kept& kept = spec.layer < 0 ? head : spec.group == ParamGroup::kExpert ? experts : layers;
    kept.elements += static_cast<double>(spec.shape.numel());
    kept.bytes += static_cast<double>(BytesOf(store, id, dtype));
  }
  return {layers.each(dtype), experts.each(dtype), head.each(dtype)};
}

StepCost::StepCost(const DecoderSpec& spec, const WeightBytes& weights,
                   std::span<const ops::KvLayout> kv)
    : head_(static_cast<double>(spec.vocab * spec.hidden)), head_bytes_(head_ * weights.head) {
  double attended = 0, chosen = 0;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    const LayerSpec& layer = spec.layers[i];
    const AttentionSpec& a = layer.attention;
    const Attention own{.window = a.window,
                        .elements = static_cast<double>(a.heads * (a.head_dim + a.value_dim)),
                        .bytes = static_cast<double>(kv[i].block_bytes()) / kv[i].block_size};
    attended += own.elements;
    layers_.push_back(own);
    auto kind = std::ranges::find(kinds_, own.window, &Attention::window);
    if (kind == kinds_.end()) kind = kinds_.insert(kind, Attention{.window = own.window});
    kind->elements += own.elements;
    kind->bytes += own.bytes;
    if (!layer.is_moe) continue;
    const moe::RouterSpec& router = layer.moe.router;
    const auto expert = static_cast<double>(3 * spec.hidden * layer.moe.intermediate);
    chosen += expert * static_cast<double>(router.top_k);
    auto like = std::ranges::find_if(experts_, [&](const Experts& e) {
      return e.count == router.experts && e.chosen == router.top_k;
    });
    if (like == experts_.end()) like = experts_.insert(like, Experts{router.experts, router.top_k});
    like->bytes += expert * weights.experts;
  }
  // Of one token that sees itself alone, six operations for each weight and element.
  multiplied_ = ModelFlopsPerToken(spec, 1) / 6 - head_ - attended;
  layer_bytes_ = (multiplied_ - chosen) * weights.layers;
}

StepWork StepCost::AttentionOf(const StepPlan& plan) const {
  StepWork work;
  for (size_t t = 0; t < plan.tables.size(); ++t) {
    const KvTable& table = plan.tables[t];
    const std::span<const Attention> kinds =
        plan.tables.size() == 1 ? std::span(kinds_) : std::span(layers_).subspan(t, 1);
    for (size_t s = 0; s < table.context_lengths.size(); ++s) {
      const int64_t tokens = plan.offsets[s + 1] - plan.offsets[s];
      const int64_t context = table.context_lengths[s];
      for (const Attention& kind : kinds) {
        work.flops += 2 * kind.elements * KeysSeen(tokens, context, kind.window);
        const int64_t read =
            kind.window == 0 ? context : std::min(context, kind.window + tokens - 1);
        work.bytes += kind.bytes * static_cast<double>(read);
      }
    }
  }
  return work;
}

StepWork StepCost::Of(std::span<const StepPlan> plans, int64_t by_layers) const {
  StepWork work;
  int64_t tokens = by_layers, lanes = 0, logits = 0, heads = 0;
  for (const StepPlan& plan : plans) {
    int64_t rows = static_cast<int64_t>(plan.sample_rows.size());
    for (const RowRange& range : plan.scored) rows += range.count;
    tokens += plan.tokens();
    logits += rows;
    lanes += plan.tokens() > 0;
    heads += rows > 0;
    if (plan.tokens() == 0) continue;
    const StepWork attention = AttentionOf(plan);
    work.flops += attention.flops;
    work.bytes += attention.bytes;
  }
  if (lanes == 0 && by_layers > 0) lanes = 1;
  work.flops +=
      2 * (multiplied_ * static_cast<double>(tokens) + head_ * static_cast<double>(logits));
  work.bytes +=
      layer_bytes_ * static_cast<double>(lanes) + head_bytes_ * static_cast<double>(heads);
  for (const Experts& kind : experts_) {
    work.bytes += kind.bytes * static_cast<double>(std::min(kind.count, tokens * kind.chosen));
  }
  return work;
}

}  // namespace cadre
