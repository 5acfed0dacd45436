#include "model/rope_spec.h"

#include <cmath>

#include "proto/model_config.pb.h"

namespace cadre {
namespace {

using config::ModelConfig;
using config::RopeScaling;

std::string TypeOf(const RopeScaling& scaling) {
  if (scaling.has_rope_type()) return scaling.rope_type();
  return scaling.has_type() ? scaling.type() : "default";
}

absl::Status CheckPositive(const char* field, double value) {
  if (std::isfinite(value) && value > 0.0) return absl::OkStatus();
  return InvalidArgument("rope_scaling.{}: {} (allowed: above 0)", field, value);
}

// Published models have 0 to 2. Zero says that there is none, where `zero` allows it.
absl::Status CheckTemperature(const char* field, double value, bool zero) {
  constexpr double kMost = 1000.0;
  if ((zero ? value >= 0.0 : value > 0.0) && value <= kMost) return absl::OkStatus();
  return InvalidArgument("rope_scaling.{}: {} (allowed: {} to {})", field, value,
                         zero ? "0" : "above 0", kMost);
}

absl::Status CheckTemperatures(const RopeScaling& s) {
  if (s.has_attention_factor()) {
    CADRE_RETURN_IF_ERROR(CheckTemperature("attention_factor", s.attention_factor(), false));
  }
  CADRE_RETURN_IF_ERROR(CheckTemperature("mscale", s.mscale(), true));
  return CheckTemperature("mscale_all_dim", s.mscale_all_dim(), true);
}

double FactorOf(const ModelConfig& c) {
  const RopeScaling& s = c.rope_scaling();
  if (s.has_factor() || !s.has_original_max_position_embeddings()) {
    return s.has_factor() ? s.factor() : 1.0;
  }
  return static_cast<double>(c.max_position_embeddings()) / s.original_max_position_embeddings();
}

double OriginalPositions(const ModelConfig& c) {
  const RopeScaling& s = c.rope_scaling();
  return s.has_original_max_position_embeddings() ? s.original_max_position_embeddings()
                                                  : c.max_position_embeddings();
}

absl::StatusOr<ops::RopeParams> Llama3(const ModelConfig& c, ops::RopeParams rope) {
  const RopeScaling& s = c.rope_scaling();
  rope.kind = ops::RopeKind::kLlama3;
  rope.original_max_positions = OriginalPositions(c);
  rope.low_freq_factor = s.low_freq_factor();
  rope.high_freq_factor = s.high_freq_factor();
  CADRE_RETURN_IF_ERROR(CheckPositive("low_freq_factor", rope.low_freq_factor));
  CADRE_RETURN_IF_ERROR(
      CheckPositive("original_max_position_embeddings", rope.original_max_positions));
  if (!(rope.high_freq_factor > rope.low_freq_factor)) {
    return InvalidArgument("rope_scaling.high_freq_factor: {} (allowed: above low_freq_factor {})",
                           rope.high_freq_factor, rope.low_freq_factor);
  }
  return rope;
}

absl::StatusOr<ops::RopeParams> Yarn(const ModelConfig& c, ops::RopeParams rope) {
  const RopeScaling& s = c.rope_scaling();
  rope.kind = ops::RopeKind::kYarn;
  rope.original_max_positions = OriginalPositions(c);
  if (s.has_beta_fast()) rope.beta_fast = s.beta_fast();
  if (s.has_beta_slow()) rope.beta_slow = s.beta_slow();
  if (s.has_mscale()) rope.mscale = s.mscale();
  if (s.has_mscale_all_dim()) rope.mscale_all_dim = s.mscale_all_dim();
  if (s.has_attention_factor()) rope.attention_factor = s.attention_factor();
  if (s.has_truncate()) rope.truncate = s.truncate();
  CADRE_RETURN_IF_ERROR(CheckPositive("beta_fast", rope.beta_fast));
  CADRE_RETURN_IF_ERROR(CheckPositive("beta_slow", rope.beta_slow));
  CADRE_RETURN_IF_ERROR(
      CheckPositive("original_max_position_embeddings", rope.original_max_positions));
  return rope;
}

}  // namespace

absl::StatusOr<ops::RopeParams> ResolveRope(const ModelConfig& c, const Architecture& arch,
                                            int64_t dim) {
  using ops::RopeKind;
  using ops::RopePairing;
  if (dim % 2 != 0) {
    return InvalidArgument("{}: {} (allowed: even, since dimensions rotate in pairs)",
                           arch.latent_attention ? "qk_rope_head_dim" : "head_dim", dim);
  }
  bool interleaved = c.has_rope_interleave() ? c.rope_interleave() : arch.interleaved_rope;
  ops::RopeParams rope{.pairing = interleaved ? RopePairing::kInterleaved : RopePairing::kHalfSplit,
                       .rotary_dim = dim,
                       .theta = c.has_rope_theta() ? c.rope_theta() : arch.default_rope_theta};
  if (!(std::isfinite(rope.theta) && rope.theta >= 1.0)) {
    return InvalidArgument("rope_theta: {} (allowed: 1 and more)", rope.theta);
  }
  std::string type = TypeOf(c.rope_scaling());
  if (type == "default") return rope;
  CADRE_RETURN_IF_ERROR(CheckTemperatures(c.rope_scaling()));
  rope.factor = FactorOf(c);
  CADRE_RETURN_IF_ERROR(CheckPositive("factor", rope.factor));
  if (type == "linear") {
    rope.kind = RopeKind::kLinear;
    return rope;
  }
  if (type == "llama3") return Llama3(c, rope);
  if (type == "yarn") return Yarn(c, rope);
  return InvalidArgument("rope_scaling.rope_type: '{}' (allowed: default, linear, llama3, yarn)",
                         type);
}

double LatentLogitScale(const ModelConfig& c) {
  const RopeScaling& s = c.rope_scaling();
  if (TypeOf(s) == "default" || s.mscale_all_dim() == 0.0) return 1.0;
  double mscale = ops::YarnMscale(FactorOf(c), s.mscale_all_dim());
  return mscale * mscale;
}

}  // namespace cadre
