#include "serving/expert_load.h"

#include <algorithm>

namespace cadre {

ExpertLoad::ExpertLoad(const DecoderSpec& spec) {
  size_t end = 0;
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    if (!spec.layers[i].is_moe) continue;
    const auto experts = static_cast<size_t>(spec.layers[i].moe.router.experts);
    layers_.push_back({.layer = static_cast<int>(i), .begin = end, .experts = experts});
    end += experts;
  }
  counts_.resize(end);
  published_.resize(end);
}

void ExpertLoad::Count(std::span<const LayerRouting> routing) {
  for (const LayerRouting& routed : routing) {
    const auto layer = std::ranges::find(layers_, routed.layer, &Layer::layer);
    CADRE_CHECK(layer != layers_.end(), "layer {} has no experts", routed.layer);
    const std::span counts = std::span(counts_).subspan(layer->begin, layer->experts);
    for (const int32_t id : std::span(routed.ids.data<int32_t>(), routed.ids.numel())) {
      ++counts[static_cast<size_t>(id)];
    }
  }
}

void ExpertLoad::Publish(std::span<const int64_t> totals) {
  CADRE_CHECK(totals.size() == counts_.size(), "{} counts of {} experts", totals.size(),
              counts_.size());
  const std::lock_guard lock(mutex_);
  std::ranges::copy(totals, published_.begin());
}

std::vector<LayerExpertTokens> ExpertLoad::Read() const {
  const std::lock_guard lock(mutex_);
  std::vector<LayerExpertTokens> read;
  for (const Layer& layer : layers_) {
    const auto begin = published_.begin() + static_cast<std::ptrdiff_t>(layer.begin);
    read.push_back({layer.layer, {begin, begin + static_cast<std::ptrdiff_t>(layer.experts)}});
  }
  return read;
}

}  // namespace cadre
