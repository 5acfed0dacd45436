#include "training/memory_plan.h"

#include <unistd.h>

#include <algorithm>

#include "core/host_allocator.h"
#include "core/status.h"
#include "model/model_cost.h"
#include "training/checkpoint.h"
#include "training/optimizer.h"

namespace cadre {
namespace {

// Elements per token that a layer's attention half saves: the stream and its norm, the fused
// projection, queries, keys and values after the split and again after the rotation, the output.
int64_t AttentionElements(const DecoderSpec& spec, const AttentionSpec& a) {
  const int64_t queries = a.heads * a.head_dim, values = a.kv_heads * a.value_dim;
  const int64_t keys = a.kv_heads * a.head_dim, output = a.heads * a.value_dim;
  const int64_t projected = queries + keys + values;
  int64_t elements = 2 * spec.hidden + projected + output;
  if (a.qk_norm != QkNorm::kNone) elements += queries + keys;
  if (a.latent.kv_rank > 0) {
    elements +=
        2 * (a.latent.q_rank + a.latent.kv_rank) + a.heads * (a.latent.nope_dim + a.value_dim);
  }
  return elements;
}

// The stream, its norm, gate and up side by side, their product.
int64_t MlpElements(const DecoderSpec& spec, int64_t intermediate) {
  return 2 * spec.hidden + 3 * intermediate;
}

// The stream, its norm, and for each chosen expert the permuted row, gate and up, their product and
// the expert's output row.
int64_t MoeElements(const DecoderSpec& spec, const MoeSpec& moe) {
  int64_t elements = 2 * spec.hidden + moe.router.top_k * (2 * spec.hidden + 3 * moe.intermediate);
  if (moe.shared != SharedExpert::kNone) elements += 3 * moe.shared_intermediate + 2 * spec.hidden;
  return elements;
}

int64_t LayerElements(const DecoderSpec& spec, const LayerSpec& layer) {
  return AttentionElements(spec, layer.attention) +
         (layer.is_moe ? MoeElements(spec, layer.moe) : MlpElements(spec, layer.mlp.intermediate));
}

double GiB(int64_t bytes) { return static_cast<double>(bytes) / (1 << 30); }

}  // namespace

std::string MemoryPlan::ToString() const {
  return fmt::format(
      "{:.2f} GiB planned: weights {:.2f}, gradients {:.2f}, optimizer {:.2f}, packed weights "
      "{:.2f}, checkpoint snapshot {:.2f}, activations {:.2f}, workspace {:.2f}, idle blocks "
      "{:.2f}, data {:.2f}, program {:.2f}",
      GiB(total()), GiB(weights), GiB(gradients), GiB(optimizer), GiB(packed_weights),
      GiB(snapshot), GiB(activations), GiB(workspace), GiB(idle), GiB(data), GiB(program));
}

absl::Status CheckFits(const config::ModelConfig& model, DType compute) {
  CADRE_ASSIGN_OR_RETURN(DecoderSpec spec, ResolveModelConfig(model));
  const auto parameters = static_cast<double>(CountParameters(spec).total);
  // bf16: weight, fp32 gradient, master and two moments; else all of one width.
  const double each =
      compute == DType::kBF16 ? 2 + 4 * 4 : 4.0 * static_cast<double>(SizeOf(compute));
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  if (parameters * each <= memory) return absl::OkStatus();
  return InvalidArgument(
      "model: {:.3g} parameters x {} bytes of weights, gradients and optimizer state are "
      "{:.1f} GiB, this machine has {:.1f}",
      parameters, each, parameters * each / (1 << 30), memory / (1 << 30));
}

MemoryPlan PlanTraining(const config::TrainConfig& config, const DecoderSpec& spec,
                        const ParameterStore& store, DType compute,
                        const MeasuredMemory& measured) {
  MemoryPlan plan{.data = measured.data, .program = measured.program};
  const auto width = static_cast<int64_t>(SizeOf(compute));
  for (const ParamBucket& bucket : store.buckets()) {
    plan.weights += static_cast<int64_t>(bucket.weights.bytes());
    if (bucket.gradients.defined())
      plan.gradients += static_cast<int64_t>(bucket.gradients.bytes());
  }
  plan.optimizer = OptimizerStateBytes(config.optimizer(), store, compute);
  if (config.checkpoint().async()) {
    plan.snapshot = SnapshotBytes(config.optimizer(), store, compute);
    plan.workspace = WriteBufferBytes();
  }
  // The input embedding is looked up, not multiplied; f64 runs on plain weights.
  if (compute != DType::kF64) {
    const int64_t looked_up = spec.tied ? 0 : spec.vocab * spec.hidden * width;
    plan.packed_weights = 2 * (plan.weights - looked_up);
  }
  const int64_t tokens = static_cast<int64_t>(config.micro_batch_size()) * config.data().seq_len();
  int64_t per_token = 2 * spec.hidden, widest = 0;
  for (const LayerSpec& layer : spec.layers) {
    const int64_t elements = LayerElements(spec, layer);
    per_token += elements;
    widest = std::max(widest, elements);
  }
  plan.activations = tokens * per_token * width;
  // The widest layer's gradients on their way down, and a chunk of logits with its gradient.
  const int64_t logit_rows =
      std::min(tokens, std::max<int64_t>(64, (int64_t{64} << 20) / (spec.vocab * 4)));
  plan.workspace += tokens * widest / 2 * width + logit_rows * spec.vocab * (4 + width);
  plan.idle = plan.tensors() / static_cast<int64_t>(HostAllocator::kIdleShare);
  return plan;
}

}  // namespace cadre
