// StepCost: what engine steps take of the machine, by the model alone: floating-point operations
// and bytes, for model FLOP and bandwidth utilization. Softmaxes, norms and what kernels do beyond
// the products are not counted.
//
// Work of all ranks together. Immutable; callable from any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/ops/kv_view.h"
#include "core/parameters.h"
#include "model/decoder_spec.h"
#include "serving/step_plan.h"

namespace cadre {

// Bytes for each element of a model's matrices, as they are kept.
struct WeightBytes {
  double layers = 0;  // without routed experts
  double experts = 0;
  double head = 0;

  // Of a part of a model: as what it holds is kept.
  static WeightBytes Of(const ParameterStore& store, DType dtype);
};

struct StepWork {
  double flops = 0;
  double bytes = 0;
};

class StepCost {
 public:
  StepCost() = default;
  // kv: of whole heads, one per layer.
  StepCost(const DecoderSpec& spec, const WeightBytes& weights, std::span<const ops::KvLayout> kv);

  // A step of one plan a lane. Operations: two for each weight that a token is multiplied with, and
  // for each element of the keys and values that it attends to. Bytes: the weights once for each
  // lane with tokens, of experts as many as the step's tokens can choose, and the keys and values
  // once for each sequence. by_layers: tokens' worth of prompts that were read layer by layer, of
  // which attention is not counted.
  StepWork Of(std::span<const StepPlan> plans, int64_t by_layers = 0) const;

 private:
  // Layers of one kind together.
  struct Attention {
    int64_t window = 0;   // 0: none
    double elements = 0;  // of queries and values, for each key
    double bytes = 0;     // of a key and its value
  };
  struct Experts {
    int64_t count = 0, chosen = 0;  // in a layer
    double bytes = 0;               // of one in each of the layers
  };
  StepWork AttentionOf(const StepPlan& plan) const;

  double multiplied_ = 0;  // weights that a token is multiplied with, the head aside
  double head_ = 0;        // weights
  double layer_bytes_ = 0, head_bytes_ = 0;
  std::vector<Experts> experts_;
  std::vector<Attention> layers_, kinds_;  // each layer, and summed by their windows
};

}  // namespace cadre
