#include "core/ops/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace cadre::ops {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

// Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
double Llama3Frequency(const RopeParams& p, double frequency) {
  const double wavelength = kTwoPi / frequency;
  if (wavelength < p.original_max_positions / p.high_freq_factor) return frequency;
  if (wavelength > p.original_max_positions / p.low_freq_factor) return frequency / p.factor;
  const double smooth = (p.original_max_positions / wavelength - p.low_freq_factor) /
                        (p.high_freq_factor - p.low_freq_factor);
  return (1 - smooth) * frequency / p.factor + smooth * frequency;
}

// The dimension that turns `rotations` times within the original context.
double YarnDimension(const RopeParams& p, double rotations) {
  return static_cast<double>(p.rotary_dim) *
         std::log(p.original_max_positions / (rotations * kTwoPi)) / (2 * std::log(p.theta));
}

void StretchYarn(const RopeParams& p, std::vector<double>& frequencies) {
  double low = YarnDimension(p, p.beta_fast), high = YarnDimension(p, p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(p.rotary_dim - 1));
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / p.factor * ramp + frequencies[i] * (1 - ramp);
  }
}

double AttentionFactor(const RopeParams& p) {
  if (p.kind != RopeKind::kYarn) return 1.0;
  if (p.attention_factor) return *p.attention_factor;
  // As in transformers a zero counts as absent.
  if (p.mscale.value_or(0) != 0 && p.mscale_all_dim.value_or(0) != 0) {
    return YarnMscale(p.factor, *p.mscale) / YarnMscale(p.factor, *p.mscale_all_dim);
  }
  return YarnMscale(p.factor);
}

absl::Status Validate(const RopeParams& p, int64_t positions) {
  if (p.rotary_dim <= 0 || p.rotary_dim % 2 != 0)
    return InvalidArgument("rope: rotary dimension {}, an even number above 0 is needed",
                           p.rotary_dim);
  if (positions <= 0) return InvalidArgument("rope: {} positions", positions);
  if (!(p.theta > 1)) return InvalidArgument("rope_theta is {}, above 1 is needed", p.theta);
  if (p.kind == RopeKind::kDefault) return absl::OkStatus();
  if (!(p.factor >= 1))
    return InvalidArgument("rope_scaling.factor is {}, at least 1 is needed", p.factor);
  if (p.kind == RopeKind::kLinear) return absl::OkStatus();
  if (!(p.original_max_positions > 0))
    return InvalidArgument("rope_scaling.original_max_position_embeddings is {}, above 0 is needed",
                           p.original_max_positions);
  if (p.kind == RopeKind::kLlama3 &&
      !(0 < p.low_freq_factor && p.low_freq_factor < p.high_freq_factor))
    return InvalidArgument(
        "rope_scaling.low_freq_factor is {}, it must lie between 0 and high_freq_factor, {}",
        p.low_freq_factor, p.high_freq_factor);
  if (p.kind == RopeKind::kYarn && !(0 < p.beta_slow && p.beta_slow <= p.beta_fast))
    return InvalidArgument("rope_scaling.beta_slow is {}, it must lie between 0 and beta_fast, {}",
                           p.beta_slow, p.beta_fast);
  return absl::OkStatus();
}

std::vector<double> Frequencies(const RopeParams& p) {
  std::vector<double> frequencies(static_cast<size_t>(p.rotary_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] =
        std::pow(p.theta, -2.0 * static_cast<double>(i) / static_cast<double>(p.rotary_dim));
    if (p.kind == RopeKind::kLinear) frequencies[i] /= p.factor;
    if (p.kind == RopeKind::kLlama3) frequencies[i] = Llama3Frequency(p, frequencies[i]);
  }
  if (p.kind == RopeKind::kYarn) StretchYarn(p, frequencies);
  return frequencies;
}

}  // namespace

double YarnMscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

std::pair<double, double> RopeTable::Exact(int64_t position, int64_t frequency) const {
  const double angle = static_cast<double>(position) * frequencies_[static_cast<size_t>(frequency)];
  return {std::cos(angle) * attention_factor_, std::sin(angle) * attention_factor_};
}

absl::StatusOr<RopeTable> RopeTable::Build(const RopeParams& params, int64_t positions) {
  CADRE_RETURN_IF_ERROR(Validate(params, positions));
  RopeTable table;
  table.rotary_dim_ = params.rotary_dim;
  table.positions_ = positions;
  table.pairing_ = params.pairing;
  table.attention_factor_ = AttentionFactor(params);
  table.frequencies_ = Frequencies(params);
  const int64_t half = params.rotary_dim / 2;
  const bool interleaved = params.pairing == RopePairing::kInterleaved;
  table.stride_ = interleaved ? params.rotary_dim : half;
  table.cos_.reserve(static_cast<size_t>(positions * table.stride_));
  table.sin_.reserve(static_cast<size_t>(positions * table.stride_));
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      auto [c, s] = table.Exact(position, i);
      table.cos_.push_back(static_cast<float>(c));
      if (interleaved) {
        table.cos_.push_back(static_cast<float>(c));
        table.sin_.push_back(static_cast<float>(-s));
      }
      table.sin_.push_back(static_cast<float>(s));
    }
  }
  return table;
}

}  // namespace cadre::ops
