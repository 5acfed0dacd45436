#include "serving/serving_layout.h"

#include "model/layout_needs.h"

namespace cadre {
namespace {

using config::ParallelConfig;

// Fields of training: gradients, the optimizer, microbatches.
absl::Status CheckUseless(const ParallelConfig& c) {
  const ParallelConfig& usual = ParallelConfig::default_instance();
  struct Field {
    const char* name;
    int64_t value, usual;
  };
  for (const Field& field : {
           Field{"zero_stage", c.zero_stage(), usual.zero_stage()},
           Field{"zero_prefetch", c.zero_prefetch(), usual.zero_prefetch()},
           Field{"zero_group_size", c.zero_group_size(), usual.zero_group_size()},
           Field{"virtual_pipeline_size", c.virtual_pipeline_size(), usual.virtual_pipeline_size()},
       }) {
    if (field.value == field.usual) continue;
    return InvalidArgument("parallel.{} {} does nothing in serving; allowed: {}", field.name,
                           field.value, field.usual);
  }
  if (c.pipeline_schedule() != usual.pipeline_schedule()) {
    return InvalidArgument("parallel.pipeline_schedule does nothing in serving; allowed: 1f1b");
  }
  if (!c.has_sequence_parallel() || !c.sequence_parallel()) return absl::OkStatus();
  return InvalidArgument(
      "parallel.sequence_parallel: a step may have fewer tokens than ranks; allowed in serving: "
      "false");
}

absl::Status CheckBuilt(const Layout& layout) {
  if (layout.cp > 1) {
    return Unimplemented(
        "parallel.context_parallel_size {}: serving knows tensor, expert, data and pipeline "
        "parallelism so far; allowed: 1",
        layout.cp);
  }
  if (layout.ep > 1 || layout.etp == 1 || layout.etp == layout.tp) return absl::OkStatus();
  return Unimplemented(
      "parallel.expert_tensor_parallel_size {}: with expert_parallel_size 1 serving knows 1 and "
      "tensor_parallel_size {}",
      layout.etp, layout.tp);
}

}  // namespace

absl::StatusOr<Layout> LayoutOfServing(const DecoderSpec& spec, const ParallelConfig& config,
                                       int world) {
  CADRE_RETURN_IF_ERROR(CheckUseless(config));
  ParallelConfig own = config;
  own.set_sequence_parallel(false);
  // Costs as at a context that many requests have.
  constexpr int64_t kTypicalContext = 1024;
  CADRE_ASSIGN_OR_RETURN(const Layout layout,
                         ResolveLayout(own, world, ModelNeedsOf(spec, kTypicalContext)));
  CADRE_RETURN_IF_ERROR(CheckBuilt(layout));
  return layout;
}

}  // namespace cadre
