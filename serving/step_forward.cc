#include "serving/step_forward.h"

#include <cstring>

#include "parallel/groups.h"

namespace cadre {
namespace {

constexpr OpLabel kLogitsLabel = {"logits"};
constexpr OpLabel kHiddenLabel = {"hidden states"};

Communicator* PipelineGroup(const Context& ctx) {
  return ctx.groups == nullptr ? nullptr : ctx.groups->pp;
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

void StepForward::Run(const StepPlan& plan, const KvBlockPool& pool, int attention_workers,
                      const LayerObserver& observe) {
  Batch batch = MakeBatch(*ctx_.allocator, plan, pool);
  batch.observe = observe;
  batch.attention_workers = attention_workers;
  const int stage = model_.decoder().part().stages.front();
  DecoderOutput out = model_.decoder().ForwardStage(ctx_, stage, Receive(batch, stage), batch);
  hidden_ = std::move(out.hidden.value);
  routing_ = std::move(out.routing);
  if (model_.decoder().part().last()) return;
  Communicator& group = *PipelineGroup(ctx_);
  Landed(ctx_, *group.Send(hidden_, group.rank() + 1, kHiddenLabel), kHiddenLabel);
}

int64_t StepForward::Join(const Tensor& row) {
  const int64_t before = hidden_.defined() ? hidden_.dim(0) : 0;
  const Tensor all = ctx_.Empty({before + 1, row.dim(1)}, row.dtype());
  if (before > 0) std::memcpy(all.raw(), hidden_.raw(), hidden_.bytes());
  std::memcpy(all.raw() + before * static_cast<int64_t>(row.bytes()), row.raw(), row.bytes());
  hidden_ = all;
  return before;
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

Tensor StepForward::Hidden(const RowRange& rows) {
  const bool last = model_.decoder().part().last();
  const int64_t width = model_.spec().hidden;
  return Hand(last ? hidden_.Narrow(rows.begin, rows.count) : Tensor(), Shape({rows.count, width}),
              model_.dtype(), kHiddenLabel);
}

// hidden: of the last stage.
LogitRows StepForward::Gathered(const Tensor& hidden, int64_t rows) {
  LogitRows own;
  if (model_.decoder().part().last()) own = ComputeLogits(ctx_, model_.decoder(), hidden);
  if (ranks_ == nullptr || ranks_->results_rank() == 0) return own;
  const Tensor sums = Hand(
      Tensor::Of<float>(*ctx_.allocator, {std::ssize(own.lse)}, std::span<const float>(own.lse)),
      Shape({rows}), DType::kF32, kLogitsLabel);
  LogitRows handed{
      .logits = Hand(own.logits, Shape({rows, model_.spec().vocab}), DType::kF32, kLogitsLabel)};
  if (sums.defined()) handed.lse.assign(sums.data<float>(), sums.data<float>() + rows);
  return handed;
}

Tensor StepForward::Hand(const Tensor& own, const Shape& shape, DType dtype, const OpLabel& label) {
  const int owner = ranks_ == nullptr ? 0 : ranks_->results_rank();
  if (owner == 0) return own;
  Communicator& group = *ctx_.groups->world;
  if (group.rank() == owner) Landed(ctx_, *group.Send(own, 0, label), label);
  if (group.rank() != 0) return {};
  const Tensor handed = ctx_.Zeros(shape, dtype);
  Landed(ctx_, *group.Receive(handed, owner, label), label);
  return handed;
}

}  // namespace cadre
