#include "parallel/stage_split.h"

#include <cstdint>
#include <numeric>

#include "core/counted.h"

namespace cadre {

std::vector<int> EvenSplit(int layers, int stages, double embedding_layers, double head_layers) {
  CADRE_CHECK(stages >= 1 && layers >= stages, "{} layers, {} stages", layers, stages);
  std::vector<int> split(stages, 1);
  std::vector<double> cost(stages, 1.0);
  cost.front() += embedding_layers;
  cost.back() += head_layers;
  for (int i = stages; i < layers; ++i) {
    int cheapest = stages - 1;
    for (int s = stages - 2; s >= 0; --s) {
      if (cost[s] < cost[cheapest]) cheapest = s;
    }
    ++split[cheapest];
    ++cost[cheapest];
  }
  return split;
}

absl::Status CheckSplit(std::span<const int> split, int layers, int stages) {
  if (static_cast<int64_t>(split.size()) != stages) {
    return InvalidArgument("pipeline_split: {} for {}",
                           Counted(static_cast<int64_t>(split.size()), "number"),
                           Counted(stages, "stage"));
  }
  for (int s = 1; s + 1 < stages; ++s) {
    if (split[s] >= 1) continue;
    return InvalidArgument(
        "pipeline_split[{}]: {} layers; only the first and the last stage may hold none", s,
        split[s]);
  }
  const int64_t sum = std::accumulate(split.begin(), split.end(), int64_t{0});
  if (split.front() < 0 || split.back() < 0 || sum != layers) {
    return InvalidArgument("pipeline_split: adds up to {} layers, but the model has {}", sum,
                           layers);
  }
  return absl::OkStatus();
}

}  // namespace cadre
