#include "moe/capacity.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/ops/permute.h"
#include "core/status.h"

namespace cadre::moe {

CappedIds DropOverCapacity(Context& ctx, const Tensor& ids, int64_t experts, double factor) {
  CADRE_CHECK(factor > 0, "capacity factor {}", factor);
  // No expert is chosen more often than there are choices, whatever the factor.
  const double capacity =
      std::min(static_cast<double>(ids.numel()),
               std::ceil(factor * static_cast<double>(ids.numel()) / static_cast<double>(experts)));
  std::vector<int64_t> room(static_cast<size_t>(experts), static_cast<int64_t>(capacity));
  CappedIds capped{.ids = ctx.Empty(ids.shape(), DType::kI32)};
  std::ranges::transform(ids.span<int32_t>(), capped.ids.data<int32_t>(), [&](int32_t id) {
    if (room[static_cast<size_t>(id)]-- > 0) return id;
    ++capped.dropped;
    return ops::kDropped;
  });
  return capped;
}

}  // namespace cadre::moe
