#include "parallel/layout.h"

#include "core/counted.h"
#include "parallel/schedule.h"
#include "parallel/stage_split.h"
#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

using config::ParallelConfig;

// Keeps products of four sizes within 64 bits, whoever filled the message.
constexpr int kMaxSize = 16384;

absl::Status CheckSize(const char* name, int value, int least) {
  if (value >= least && value <= kMaxSize) return absl::OkStatus();
  return InvalidArgument("{}: {} is out of range; allowed: {} to {}", name, value, least, kMaxSize);
}

absl::Status CheckSizes(const ParallelConfig& c) {
  CADRE_RETURN_IF_ERROR(CheckSize("data_parallel_size", c.data_parallel_size(), 0));
  CADRE_RETURN_IF_ERROR(CheckSize("tensor_parallel_size", c.tensor_parallel_size(), 1));
  CADRE_RETURN_IF_ERROR(CheckSize("pipeline_parallel_size", c.pipeline_parallel_size(), 1));
  CADRE_RETURN_IF_ERROR(CheckSize("context_parallel_size", c.context_parallel_size(), 1));
  CADRE_RETURN_IF_ERROR(CheckSize("expert_parallel_size", c.expert_parallel_size(), 1));
  CADRE_RETURN_IF_ERROR(
      CheckSize("expert_tensor_parallel_size", c.expert_tensor_parallel_size(), 0));
  return CheckSize("virtual_pipeline_size", c.virtual_pipeline_size(), 0);
}

absl::Status CheckMultiple(const char* name, int value, const char* of, int size) {
  if (value % size == 0) return absl::OkStatus();
  return InvalidArgument("{} {} is not a multiple of {} {}", name, value, of, size);
}

absl::Status FitWorld(const ParallelConfig& c, int world, Layout* layout) {
  layout->tp = c.tensor_parallel_size();
  layout->pp = c.pipeline_parallel_size();
  layout->cp = c.context_parallel_size();
  const int64_t share = int64_t{layout->tp} * layout->pp * layout->cp;
  if (c.data_parallel_size() != 0) {
    layout->dp = c.data_parallel_size();
    if (share * layout->dp == world) return absl::OkStatus();
    return InvalidArgument(
        "data_parallel_size {}: {} x tensor {} x pipeline {} x context {} = {}, "
        "but the world has {}",
        layout->dp, layout->dp, layout->tp, layout->pp, layout->cp, share * layout->dp, world);
  }
  if (world % share != 0) {
    return InvalidArgument(
        "tensor_parallel_size {}: {} x pipeline {} x context {} = {} does not divide a world of {}",
        layout->tp, layout->tp, layout->pp, layout->cp, share, world);
  }
  layout->dp = static_cast<int>(world / share);
  return absl::OkStatus();
}

// Sizes of data-parallel axes may shrink to 1 where machines are lost, so what rests on them is
// never said to do nothing.
absl::Status CheckUses(const ParallelConfig& c, const Layout& layout) {
  if (layout.cp == 1 && c.context_parallel_method() == config::CONTEXT_PARALLEL_METHOD_RING) {
    return InvalidArgument(
        "context_parallel_method: ring does nothing with context_parallel_size 1; allowed: "
        "all_gather");
  }
  if (layout.pp == 1 && c.pipeline_schedule() != config::PIPELINE_SCHEDULE_1F1B) {
    return InvalidArgument(
        "pipeline_schedule: {} does nothing with pipeline_parallel_size 1; allowed: 1f1b",
        Name(c.pipeline_schedule()));
  }
  const int usual = ParallelConfig::default_instance().zero_prefetch();
  if (c.zero_stage() < 3 && c.zero_prefetch() != usual) {
    return InvalidArgument(
        "zero_prefetch {} does nothing with zero_stage {}, which gathers no weights; allowed: {}, "
        "or zero_stage 3",
        c.zero_prefetch(), c.zero_stage(), usual);
  }
  return absl::OkStatus();
}

absl::Status FitExperts(const ParallelConfig& c, const LayoutNeeds& needs, Layout* layout) {
  layout->ep = c.expert_parallel_size();
  layout->etp = c.expert_tensor_parallel_size() != 0 ? c.expert_tensor_parallel_size() : layout->tp;
  if (needs.num_layers != 0 && needs.num_moe_layers == 0) {
    if (layout->ep > 1) {
      return InvalidArgument("expert_parallel_size {}: the model has no experts; allowed: 1",
                             layout->ep);
    }
    if (c.expert_tensor_parallel_size() != 0) {
      return InvalidArgument("expert_tensor_parallel_size {}: the model has no experts; allowed: 0",
                             layout->etp);
    }
  }
  const int mesh = layout->tp * layout->cp * layout->dp;
  const int64_t share = int64_t{layout->etp} * layout->ep;
  if (mesh % share != 0) {
    return InvalidArgument(
        "expert_parallel_size {}: {} x expert_tensor_parallel_size {} = {} does not divide tensor "
        "{} x context {} x data {} = {}",
        layout->ep, layout->ep, layout->etp, share, layout->tp, layout->cp, layout->dp, mesh);
  }
  layout->edp = static_cast<int>(mesh / share);
  CADRE_RETURN_IF_ERROR(
      CheckMultiple("num_experts", needs.num_experts, "expert_parallel_size", layout->ep));
  return CheckMultiple("moe_intermediate_size", needs.moe_intermediate_size,
                       "expert_tensor_parallel_size", layout->etp);
}

absl::Status FitZero(const ParallelConfig& c, Layout* layout) {
  layout->zero_stage = c.zero_stage();
  if (layout->zero_stage < 0 || layout->zero_stage > 3) {
    return InvalidArgument("zero_stage {}, allowed are 0 to 3", layout->zero_stage);
  }
  const int group = c.zero_group_size(), all = layout->cp * layout->dp;
  if (group == 0) return absl::OkStatus();
  if (all % group != 0) {
    return InvalidArgument("zero_group_size {} does not divide context {} x data {} = {}", group,
                           layout->cp, layout->dp, all);
  }
  if (layout->zero_stage == 0) {
    return InvalidArgument("zero_group_size {}: zero_stage 0 shards nothing", group);
  }
  const auto fit = [](int a, int b) { return a % b == 0 || b % a == 0; };
  const int block = layout->tp * group, share = layout->etp * layout->ep;
  if (!fit(block, share) || !fit(block, layout->etp)) {
    return InvalidArgument(
        "zero_group_size {}: tensor {} x {} = {} ranks neither hold nor divide "
        "expert_parallel_size "
        "{} x expert_tensor_parallel_size {} = {}",
        group, layout->tp, group, block, layout->ep, layout->etp, share);
  }
  if (group < all) layout->zero_group = group;
  return absl::OkStatus();
}

absl::Status CheckHeads(const LayoutNeeds& needs, int tp) {
  if (needs.num_attention_heads != 0 && needs.num_attention_heads < tp) {
    return InvalidArgument("num_attention_heads {} is less than tensor_parallel_size {}",
                           needs.num_attention_heads, tp);
  }
  CADRE_RETURN_IF_ERROR(
      CheckMultiple("num_attention_heads", needs.num_attention_heads, "tensor_parallel_size", tp));
  const int kv = needs.num_key_value_heads;
  if (kv == 0 || kv % tp == 0 || tp % kv == 0) return absl::OkStatus();
  return InvalidArgument(
      "num_key_value_heads {} is neither a multiple of tensor_parallel_size {} nor divides it", kv,
      tp);
}

absl::Status CheckTensors(const LayoutNeeds& needs, int tp) {
  const char* const of = "tensor_parallel_size";
  CADRE_RETURN_IF_ERROR(CheckHeads(needs, tp));
  CADRE_RETURN_IF_ERROR(CheckMultiple("intermediate_size", needs.intermediate_size, of, tp));
  CADRE_RETURN_IF_ERROR(CheckMultiple("shared_expert_intermediate_size",
                                      needs.shared_expert_intermediate_size, of, tp));
  if (needs.vocab_size == 0) return absl::OkStatus();
  // Ranks have ceil(vocab_size / tp) rows each, the last what is left.
  const int64_t rows = (int64_t{needs.vocab_size} + tp - 1) / tp;
  if (rows * (tp - 1) < needs.vocab_size) return absl::OkStatus();
  return InvalidArgument(
      "vocab_size {}: {} rows on each of tensor_parallel_size {} ranks leave none for the last",
      needs.vocab_size, rows, tp);
}

absl::Status CheckSequence(const LayoutNeeds& needs, const Layout& layout) {
  if (layout.cp > 1 && needs.seq_len % (2 * layout.cp) != 0) {
    return InvalidArgument("seq_len {} is not a multiple of 2 x context_parallel_size {} = {}",
                           needs.seq_len, layout.cp, 2 * layout.cp);
  }
  // Tokens are split for experts that are not shared just as the tokens are.
  const bool split_for_experts =
      needs.num_moe_layers > 0 && (layout.ep > 1 || layout.etp != layout.tp);
  if ((layout.sequence_parallel || split_for_experts) &&
      needs.seq_len / layout.cp % layout.tp != 0) {
    return InvalidArgument(
        "seq_len {} is not a multiple of context_parallel_size {} x tensor_parallel_size {} = {}, "
        "as {} needs",
        needs.seq_len, layout.cp, layout.tp, layout.cp * layout.tp,
        layout.sequence_parallel ? "sequence_parallel" : "expert parallelism");
  }
  return absl::OkStatus();
}

absl::Status FitBatch(const LayoutNeeds& needs, Layout* layout) {
  if (needs.global_batch_size == 0 || needs.micro_batch_size == 0) return absl::OkStatus();
  const int64_t share = int64_t{layout->dp} * needs.micro_batch_size;
  if (needs.global_batch_size % share != 0) {
    return InvalidArgument(
        "global_batch_size {} is not a multiple of data_parallel_size {} x micro_batch_size {} = "
        "{}",
        needs.global_batch_size, layout->dp, needs.micro_batch_size, share);
  }
  layout->microbatches = static_cast<int>(needs.global_batch_size / share);
  return absl::OkStatus();
}

absl::Status FitSchedule(const ParallelConfig& c, const LayoutNeeds& needs, Layout* layout) {
  layout->schedule = c.pipeline_schedule();
  layout->stages_per_rank = c.virtual_pipeline_size() != 0 ? c.virtual_pipeline_size()
                                                           : LeastStagesPerRank(layout->schedule);
  if (layout->pp == 1 && layout->stages_per_rank > 1) {
    return InvalidArgument("virtual_pipeline_size {}: pipeline_parallel_size is 1; allowed: 0, 1",
                           layout->stages_per_rank);
  }
  const ScheduleSpec spec = PipelineOf(*layout);
  if (absl::Status status = CheckStages(spec); !status.ok()) {
    return Annotate(status, fmt::format("virtual_pipeline_size {}", c.virtual_pipeline_size()));
  }
  if (needs.global_batch_size == 0 || needs.micro_batch_size == 0) return absl::OkStatus();
  absl::Status status = CheckMicrobatches(spec);
  if (status.ok()) return status;
  return Annotate(status, fmt::format("global_batch_size {} / (data_parallel_size {} x "
                                      "micro_batch_size {})",
                                      needs.global_batch_size, layout->dp, needs.micro_batch_size));
}

absl::Status FitLayers(const ParallelConfig& c, const LayoutNeeds& needs, Layout* layout) {
  if (needs.num_layers == 0) return absl::OkStatus();
  if (c.pipeline_split_size() != 0) {
    layout->stage_layers.assign(c.pipeline_split().begin(), c.pipeline_split().end());
    return CheckSplit(layout->stage_layers, needs.num_layers, layout->stages());
  }
  if (layout->stages() > needs.num_layers) {
    return InvalidArgument(
        "num_hidden_layers {}: fewer than pipeline_parallel_size {} x {} on each = {}",
        needs.num_layers, layout->pp, Counted(layout->stages_per_rank, "stage"), layout->stages());
  }
  layout->stage_layers =
      EvenSplit(needs.num_layers, layout->stages(), needs.embedding_layers, needs.head_layers);
  return absl::OkStatus();
}

}  // namespace

ScheduleSpec PipelineOf(const Layout& layout) {
  return {.kind = layout.schedule,
          .ranks = layout.pp,
          .stages_per_rank = layout.stages_per_rank,
          .microbatches = layout.microbatches};
}

absl::StatusOr<Layout> ResolveLayout(const ParallelConfig& config, int world,
                                     const LayoutNeeds& needs) {
  CADRE_RETURN_IF_ERROR(CheckSizes(config));
  Layout layout;
  CADRE_RETURN_IF_ERROR(FitWorld(config, world, &layout));
  const bool sequence_parallel =
      config.has_sequence_parallel() ? config.sequence_parallel() : !needs.ladder;
  layout.sequence_parallel = sequence_parallel && layout.tp > 1;
  layout.ring = config.context_parallel_method() == config::CONTEXT_PARALLEL_METHOD_RING;
  CADRE_RETURN_IF_ERROR(CheckTensors(needs, layout.tp));
  CADRE_RETURN_IF_ERROR(FitExperts(config, needs, &layout));
  CADRE_RETURN_IF_ERROR(FitZero(config, &layout));
  CADRE_RETURN_IF_ERROR(CheckUses(config, layout));
  CADRE_RETURN_IF_ERROR(CheckSequence(needs, layout));
  CADRE_RETURN_IF_ERROR(FitBatch(needs, &layout));
  CADRE_RETURN_IF_ERROR(FitSchedule(config, needs, &layout));
  CADRE_RETURN_IF_ERROR(FitLayers(config, needs, &layout));
  return layout;
}

}  // namespace cadre
