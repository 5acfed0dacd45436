#include "model/layout_needs.h"

#include "model/model_cost.h"

namespace cadre {

LayoutNeeds ModelNeedsOf(const DecoderSpec& spec, int64_t seq_len) {
  const LayerSpec& first = spec.layers.front();
  LayoutNeeds needs = {.num_layers = static_cast<int>(spec.layers.size()),
                       .num_attention_heads = static_cast<int>(first.attention.heads),
                       .num_key_value_heads = static_cast<int>(first.attention.kv_heads),
                       .vocab_size = static_cast<int>(spec.vocab)};
  const double head = 6.0 * static_cast<double>(spec.vocab) * static_cast<double>(spec.hidden);
  const double layers = ModelFlopsPerToken(spec, seq_len) - head;
  // The embedding multiplies nothing.
  needs.head_layers = head / layers * needs.num_layers;
  for (const LayerSpec& layer : spec.layers) {
    needs.ladder = needs.ladder || layer.wiring == Wiring::kLadder;
    if (!layer.is_moe) {
      needs.intermediate_size = static_cast<int>(layer.mlp.intermediate);
      continue;
    }
    ++needs.num_moe_layers;
    needs.num_experts = static_cast<int>(layer.moe.router.experts);
    needs.moe_intermediate_size = static_cast<int>(layer.moe.intermediate);
    needs.shared_expert_intermediate_size = static_cast<int>(layer.moe.shared_intermediate);
  }
  return needs;
}

}  // namespace cadre
