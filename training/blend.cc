#include "training/blend.h"

#include <algorithm>
#include <cmath>

#include "core/random.h"

namespace cadre {
namespace {

using U128 = unsigned __int128;

constexpr uint64_t kStep = 0x9E3779B97F4A7C15;
constexpr U128 kWhole = U128{1} << 64;

// sum over i < n of floor((a·i + b) / m), modulo 2^128. a·n + b must fit 128 bits.
U128 FloorSum(U128 n, U128 m, U128 a, U128 b) {
  U128 sum = 0;
  while (true) {
    sum += n * (n - 1) / 2 * (a / m) + n * (b / m);
    a %= m;
    b %= m;
    U128 top = a * n + b;
    if (top < m) return sum;
    n = top / m;
    b = top % m;
    std::swap(a, m);
  }
}

}  // namespace

absl::StatusOr<Blend> Blend::Create(const std::vector<double>& weights, uint64_t seed) {
  long double total = 0;
  for (double weight : weights) {
    if (!std::isfinite(weight) || weight < 0) {
      return InvalidArgument("data.sources: weight {} must be finite and at least 0", weight);
    }
    total += weight;
  }
  if (!(total > 0)) return InvalidArgument("data.sources: the weights sum to 0");
  Blend blend;
  blend.start_ = RandomKey(seed, "blend").U64(0);
  blend.bounds_.push_back(0);
  long double sum = 0;
  for (double weight : weights) {
    sum += weight;
    U128 bound = static_cast<U128>(sum / total * 0x1p64L);
    blend.bounds_.push_back(std::min(bound, kWhole));
  }
  // Nothing may fall past the last source that has a weight.
  for (size_t k = weights.size(); k > 0; --k) {
    blend.bounds_[k] = kWhole;
    if (weights[k - 1] > 0) break;
  }
  return blend;
}

int64_t Blend::CountBelow(int64_t samples, U128 bound) const {
  U128 n = static_cast<U128>(samples);
  if (samples == 0 || bound == 0) return 0;
  // x mod m < c exactly where floor((x + m) / m) exceeds floor((x + m − c) / m), by one.
  return static_cast<int64_t>(FloorSum(n, kWhole, kStep, start_ + kWhole) -
                              FloorSum(n, kWhole, kStep, start_ + kWhole - bound));
}

Blend::Pick Blend::At(int64_t sample) const {
  U128 point = start_ + kStep * static_cast<uint64_t>(sample);
  auto above = std::upper_bound(bounds_.begin(), bounds_.end(), point);
  int source = static_cast<int>(above - bounds_.begin()) - 1;
  return {.source = source,
          .row = CountBelow(sample, bounds_[source + 1]) - CountBelow(sample, bounds_[source])};
}

}  // namespace cadre
