#include "model/batch.h"

namespace cadre {

Batch PackSequences(Allocator& allocator, std::span<const std::vector<int32_t>> sequences) {
  std::vector<int32_t> ids, positions, offsets = {0};
  for (const std::vector<int32_t>& sequence : sequences) {
    for (size_t i = 0; i < sequence.size(); ++i) {
      ids.push_back(sequence[i]);
      positions.push_back(static_cast<int32_t>(i));
    }
    offsets.push_back(static_cast<int32_t>(ids.size()));
  }
  Shape shape{static_cast<int64_t>(ids.size())};
  return {.ids = Tensor::Of<int32_t>(allocator, shape, std::span<const int32_t>(ids)),
          .positions = Tensor::Of<int32_t>(allocator, shape, std::span<const int32_t>(positions)),
          .offsets = std::move(offsets)};
}

}  // namespace cadre
