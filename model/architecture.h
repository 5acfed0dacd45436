// The model families, one row each: which of a few small features a family has. Adding a family is
// a row here and, where it brings a feature that none has, that feature's file.
//
// Pure data; callable from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/status.h"
#include "moe/router_spec.h"

namespace cadre {

// Which attention projections have a bias.
enum class BiasRule : uint8_t {
  kNone,
  kAll,        // q, k, v and o where attention_bias says so
  kQkv,        // q, k and v always
  kQkvConfig,  // q, k and v unless qkv_bias says no
};

// RMSNorm of queries and keys before the rotation.
enum class QkNorm : uint8_t { kNone, kHead, kProjection };

enum class WindowRule : uint8_t {
  kNone,
  kAllLayers,    // sliding_window, where given, in every layer
  kUpperLayers,  // where use_sliding_window: from layer max_window_layers on, or by layer_types
  kAlternating,  // by layer_types; absent: even layers have the window
};

// Which layers are mixtures.
enum class MoeRule : uint8_t { kNone, kAllLayers, kSparseStep, kAfterDense };

// How a mixture's tensors are called and laid out in a file.
enum class ExpertFiles : uint8_t {
  kMlp,      // mlp.gate, mlp.experts.E.{gate,up,down}_proj
  kMixtral,  // block_sparse_moe.gate, block_sparse_moe.experts.E.{w1,w3,w2}
  kFused,    // mlp.router, mlp.experts.{gate_up,down}_proj(_bias) as [E, in, out]
};

enum class SharedExpert : uint8_t { kNone, kPlain, kGated };

enum class MlpActivation : uint8_t { kSwiGlu, kClampedSwiGlu };

struct Architecture {
  std::string_view model_type;
  std::string_view class_name;  // in transformers
  BiasRule bias = BiasRule::kNone;
  bool default_attention_bias = false;
  bool mlp_bias = false;  // reads mlp_bias
  QkNorm qk_norm = QkNorm::kNone;
  WindowRule window = WindowRule::kNone;
  bool clip_qkv = false;  // reads clip_qkv
  bool sinks = false;
  bool latent_attention = false;  // MLA
  bool interleaved_rope = false;  // pairs (2i, 2i + 1); rope_interleave overrides where given
  MoeRule moe = MoeRule::kNone;
  ExpertFiles expert_files = ExpertFiles::kMlp;
  moe::RouterKind router = moe::RouterKind::kSoftmaxTopK;
  bool always_renormalize = false;
  bool default_renormalize = false;
  bool expert_bias = false;  // router, gate_up and down projections have biases
  SharedExpert shared = SharedExpert::kNone;
  MlpActivation activation = MlpActivation::kSwiGlu;
  double default_norm_eps = 1e-6;
  double default_rope_theta = 10000.0;
};

// Every family, in the order of the help texts.
std::span<const Architecture> Architectures();

// kInvalidArgument for an unknown model_type, listing those that there are.
absl::StatusOr<const Architecture*> FindArchitecture(const std::string& model_type);

}  // namespace cadre
