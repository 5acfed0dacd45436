#include "moe/balance.h"

#include <algorithm>

#include "core/tape.h"

namespace cadre::moe {

void ExpertLoad::Add(const Tensor& ids) {
  for (int32_t id : ids.span<int32_t>()) {
    CADRE_CHECK(id >= 0 && id < static_cast<int64_t>(counts_.size()), "expert {}", id);
    ++counts_[static_cast<size_t>(id)];
  }
}

void ExpertLoad::Clear() { std::fill(counts_.begin(), counts_.end(), 0); }

double ExpertLoad::MaxOverMean() const {
  int64_t total = 0, most = 0;
  for (int64_t count : counts_) {
    total += count;
    most = std::max(most, count);
  }
  if (total == 0) return 0.0;
  return static_cast<double>(most) * static_cast<double>(counts_.size()) /
         static_cast<double>(total);
}

void UpdateRouterBias(Context& ctx, ParamId correction, std::span<const int64_t> counts,
                      double rate) {
  LeasedWeight weight(ctx, correction, Lease::kForward);
  const Tensor& bias = weight.tensor();
  int64_t experts = bias.numel(), total = 0;
  CADRE_CHECK(experts == static_cast<int64_t>(counts.size()), "{} counts for {} experts",
              counts.size(), experts);
  for (int64_t count : counts) total += count;
  VisitFloat(bias.dtype(), [&](auto type) {
    using T = decltype(type);
    T* values = bias.data<T>();
    for (int64_t e = 0; e < experts; ++e) {
      // Integers: count against total / experts without a division.
      int64_t scaled = counts[static_cast<size_t>(e)] * experts;
      double sign = scaled < total ? 1.0 : scaled > total ? -1.0 : 0.0;
      values[e] = static_cast<T>(static_cast<double>(values[e]) + rate * sign);
    }
  });
  ctx.parameters->WeightsChanged();
}

}  // namespace cadre::moe
