// A decoder as plain numbers: what a ModelConfig means once the family's defaults and rules are
// applied, layer by layer. Parameters, the forward pass, FLOP counts and export work from it.
//
// Pure functions; callable from any thread. Sizes follow the legend: D model, H heads, K KV heads,
// E experts, V vocabulary, I intermediate, dh head size.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/ops/rope_table.h"
#include "core/status.h"
#include "model/architecture.h"
#include "moe/router_spec.h"

namespace cadre {

namespace config {
class ModelConfig;
}

// Multi-head latent attention (DeepSeek V2, arXiv 2405.04434).
struct LatentSpec {
  int64_t q_rank = 0;   // 0: queries are projected in one step
  int64_t kv_rank = 0;  // 0: not a latent attention
  int64_t nope_dim = 0;
  int64_t rope_dim = 0;
};

struct AttentionSpec {
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;   // of queries and keys
  int64_t value_dim = 0;  // of values
  bool qkv_bias = false;
  bool output_bias = false;
  QkNorm qk_norm = QkNorm::kNone;
  double clip_qkv = 0.0;  // 0: not clamped
  bool sinks = false;
  int64_t window = 0;  // tokens looked back over, itself included; 0: all
  double scale = 0.0;  // of the logits
  LatentSpec latent;
};

struct MlpSpec {
  int64_t intermediate = 0;
  bool bias = false;
  MlpActivation activation = MlpActivation::kSwiGlu;
  double limit = 0.0;  // of the clamped activation
};

struct MoeSpec {
  moe::RouterSpec router;
  int64_t intermediate = 0;  // of one expert
  bool bias = false;
  MlpActivation activation = MlpActivation::kSwiGlu;
  double limit = 0.0;
  ExpertFiles files = ExpertFiles::kMlp;
  SharedExpert shared = SharedExpert::kNone;
  int64_t shared_intermediate = 0;
};

// How a layer's modules are wired to the residual stream (model/residual.h).
enum class Wiring : uint8_t { kStandard, kLadder };

struct LayerSpec {
  AttentionSpec attention;
  Wiring wiring = Wiring::kStandard;
  bool is_moe = false;
  MlpSpec mlp;  // where not is_moe
  MoeSpec moe;  // where is_moe
};

struct DecoderSpec {
  std::string model_type;
  int64_t vocab = 0;
  int64_t hidden = 0;
  double norm_eps = 1e-6;
  bool tied = false;
  double init_stddev = 0.02;
  int64_t max_position = 0;
  ops::RopeParams rope;
  std::vector<LayerSpec> layers;
};

// kInvalidArgument names the field, its value and what is allowed, with the arithmetic.
absl::StatusOr<DecoderSpec> ResolveModelConfig(const config::ModelConfig& config);

// The same check alone.
absl::Status ValidateModelConfig(const config::ModelConfig& config);

}  // namespace cadre
