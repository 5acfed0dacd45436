#include "serving/follower.h"

#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "core/trace.h"
#include "memory/kv_block_pool.h"
#include "serving/expert_load.h"
#include "serving/kv_plan.h"
#include "serving/step_forward.h"

namespace cadre {
namespace {

absl::Status CheckMessage(const StepMessage& message, Model& model, const StepBounds& bounds) {
  const auto version = static_cast<int64_t>(model.parameters().version());
  if (message.weight_version != version) {
    return absl::FailedPreconditionError(
        fmt::format("step {}: rank 0 has version {} of the weights, this rank {}", message.number,
                    message.weight_version, version));
  }
  return CheckStep(message.plan, bounds);
}

void RunStep(StepForward& forward, const StepPlan& plan, KvBlockPool& pool, int workers) {
  for (const KvCopy& copy : plan.copies) pool.Copy(copy.from, copy.to);
  forward.Run(plan, pool, workers);
  for (const RowRange& rows : plan.scored) forward.Logits(rows);
  if (!plan.sample_rows.empty()) forward.Logits(plan.sample_rows);
}

}  // namespace

absl::Status FollowSteps(Model& model, const EngineOptions& options, ServingRanks& ranks) {
  CADRE_ASSIGN_OR_RETURN(KvPlan kv, PlanCacheOf(model, options));
  HostAllocator allocator;
  PackedWeights packed;
  KvBlockPool pool(allocator, std::move(kv.layouts), kv.blocks);
  Context ctx{.allocator = &allocator,
              .threads = options.threads,
              .parameters = &model.parameters(),
              .packed = &packed,
              .trace = options.trace,
              .groups = ranks.groups()};
  StepForward forward(ctx, model);
  ExpertLoad load(model.spec());
  const StepBounds bounds = {.vocabulary = model.spec().vocab,
                             .positions = model.decoder().max_position(),
                             .blocks = pool.blocks(),
                             .block_size = pool.block_size(),
                             .layers = static_cast<int>(model.spec().layers.size())};
  while (true) {
    CADRE_ASSIGN_OR_RETURN(const StepMessage message, ranks.Hear());
    if (message.kind == StepKind::kStop) return absl::OkStatus();
    if (message.kind == StepKind::kReport) {
      CADRE_RETURN_IF_ERROR(ranks.SumCounts(load.counts()).status());
      continue;
    }
    CADRE_RETURN_IF_ERROR(CheckMessage(message, model, bounds));
    const TraceScope scope(options.trace, "step", {{"tokens", message.plan.tokens()}});
    RunStep(forward, message.plan, pool, options.attention_workers);
    CADRE_RETURN_IF_ERROR(ranks.failure());
    load.Count(forward.routing());
  }
}

}  // namespace cadre
