// The cosines and sines of rotary positions (Su et al., "RoFormer", 2021), with the stretchings
// that published models use: linear (Chen et al., 2023), llama3 (Llama 3.1's), yarn (Peng et al.,
// 2023). Frequencies and angles are computed in f64 and rounded once.
//
// Immutable after Build, so any number of threads may read it. It must outlive the tapes of the ops
// that were given it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/status.h"

namespace cadre::ops {

enum class RopeKind : uint8_t { kDefault, kLinear, kLlama3, kYarn };
enum class RopePairing : uint8_t {
  kHalfSplit,    // elements i and i + rotary_dim / 2 (llama)
  kInterleaved,  // elements 2 i and 2 i + 1 (deepseek)
};

struct RopeParams {
  RopeKind kind = RopeKind::kDefault;
  RopePairing pairing = RopePairing::kHalfSplit;
  int64_t rotary_dim = 0;  // even
  double theta = 10000.0;
  double factor = 1.0;                     // linear, llama3, yarn
  double original_max_positions = 0;       // llama3, yarn
  double low_freq_factor = 1.0;            // llama3
  double high_freq_factor = 4.0;           // llama3
  double beta_fast = 32.0;                 // yarn
  double beta_slow = 1.0;                  // yarn
  std::optional<double> mscale;            // yarn
  std::optional<double> mscale_all_dim;    // yarn
  std::optional<double> attention_factor;  // yarn; absent: derived from factor and the mscales
  bool truncate = true;                    // yarn
};

// 0.1 * mscale * ln(factor) + 1, and 1 up to a factor of 1: yarn's logit temperature.
double YarnMscale(double factor, double mscale = 1.0);

class RopeTable {
 public:
  // Positions [0, positions). InvalidArgument names the field that is impossible.
  static absl::StatusOr<RopeTable> Build(const RopeParams& params, int64_t positions);

  int64_t rotary_dim() const { return rotary_dim_; }
  int64_t positions() const { return positions_; }
  RopePairing pairing() const { return pairing_; }
  // Radians per position, [rotary_dim / 2].
  const std::vector<double>& frequencies() const { return frequencies_; }
  // Already multiplied into the cosines and sines.
  double attention_factor() const { return attention_factor_; }

  // Of one position. Half-split: [rotary_dim / 2] each. Interleaved: [rotary_dim] each, every
  // cosine twice, every sine as (-s, s).
  const float* cos(int64_t position) const { return cos_.data() + position * stride_; }
  const float* sin(int64_t position) const { return sin_.data() + position * stride_; }
  // The pair (cos, sin) of one frequency in f64, for the reference path.
  std::pair<double, double> Exact(int64_t position, int64_t frequency) const;

 private:
  RopeTable() = default;

  int64_t rotary_dim_ = 0, positions_ = 0, stride_ = 0;
  RopePairing pairing_ = RopePairing::kHalfSplit;
  double attention_factor_ = 1.0;
  std::vector<double> frequencies_;
  std::vector<float> cos_, sin_;
};

}  // namespace cadre::ops
