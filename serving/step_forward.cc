#include "serving/step_forward.h"

#include "parallel/groups.h"

namespace cadre {
namespace {

constexpr OpLabel kLogitsLabel = {"logits"};
constexpr OpLabel kHiddenLabel = {"hidden states"};

Communicator* PipelineGroup(const Context& ctx) {
  return ctx.groups == nullptr ? nullptr : ctx.groups->pp;
}

// The last stage's rows, on the ranks of the pipeline that rank 0 is in: from its last to its
// first.
LogitRows HandBack(Context& ctx, Communicator& group, LogitRows rows) {
  const int last = group.size() - 1;
  const int64_t count = rows.logits.dim(0);
  if (group.rank() == last) {
    const WorkPtr logits = group.Send(rows.logits, 0, kLogitsLabel);
    const Tensor lse = Tensor::Of<float>(*ctx.allocator, {count}, std::span<const float>(rows.lse));
    const WorkPtr sums = group.Send(lse, 0, kLogitsLabel);
    Landed(ctx, *logits, kLogitsLabel);
    Landed(ctx, *sums, kLogitsLabel);
    return {};
  }
  const Tensor lse = ctx.Zeros({count}, DType::kF32);
  const WorkPtr logits = group.Receive(rows.logits, last, kLogitsLabel);
  const WorkPtr sums = group.Receive(lse, last, kLogitsLabel);
  Landed(ctx, *logits, kLogitsLabel);
  Landed(ctx, *sums, kLogitsLabel);
  rows.lse.assign(lse.data<float>(), lse.data<float>() + count);
  return rows;
}

}  // namespace

// What the stage before gives: nothing to the first.
Var StepForward::Receive(const Batch& batch, int stage) {
  if (stage == 0) return {};
  Communicator& group = *PipelineGroup(ctx_);
  const Tensor x =
      ctx_.Zeros({batch.tokens(), model_.decoder().handed_on(stage - 1)}, model_.dtype());
  Landed(ctx_, *group.Receive(x, group.rank() - 1, kHiddenLabel), kHiddenLabel);
  return {x};
}

void StepForward::Run(const StepPlan& plan, const KvBlockPool& pool, int attention_workers) {
  Batch batch = MakeBatch(*ctx_.allocator, plan, pool);
  batch.attention_workers = attention_workers;
  const int stage = model_.decoder().part().stages.front();
  DecoderOutput out = model_.decoder().ForwardStage(ctx_, stage, Receive(batch, stage), batch);
  hidden_ = std::move(out.hidden.value);
  routing_ = std::move(out.routing);
  if (model_.decoder().part().last()) return;
  Communicator& group = *PipelineGroup(ctx_);
  Landed(ctx_, *group.Send(hidden_, group.rank() + 1, kHiddenLabel), kHiddenLabel);
}

LogitRows StepForward::Logits(const RowRange& rows) {
  const bool last = model_.decoder().part().last();
  return Gathered(last ? hidden_.Narrow(rows.begin, rows.count) : Tensor(), rows.count);
}

LogitRows StepForward::Logits(std::span<const int64_t> rows) {
  const bool last = model_.decoder().part().last();
  return Gathered(last ? GatherRows(ctx_, hidden_, rows) : Tensor(),
                  static_cast<int64_t>(rows.size()));
}

// hidden: of the last stage.
LogitRows StepForward::Gathered(const Tensor& hidden, int64_t rows) {
  const ModelPart& part = model_.decoder().part();
  LogitRows logits;
  if (part.last()) logits = ComputeLogits(ctx_, model_.decoder(), hidden);
  if (part.stage_count() == 1 || part.tp_rank != 0) return logits;
  if (part.first()) logits.logits = ctx_.Zeros({rows, model_.decoder().spec().vocab}, DType::kF32);
  if (!part.first() && !part.last()) return {};
  return HandBack(ctx_, *PipelineGroup(ctx_), std::move(logits));
}

}  // namespace cadre
