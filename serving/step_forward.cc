#include "serving/step_forward.h"

#include <algorithm>
#include <cstring>

#include "parallel/groups.h"

namespace cadre {
namespace {

constexpr OpLabel kLogitsLabel = {"logits"};
constexpr OpLabel kHiddenLabel = {"hidden states"};

// Rows of several lanes end to end; on ranks other than rank 0 nothing.
LogitRows JoinRows(Context& ctx, std::vector<LogitRows> lanes) {
  if (lanes.empty() || !lanes.front().logits.defined()) return {};
  if (lanes.size() == 1) return std::move(lanes.front());
  int64_t rows = 0;
  for (const LogitRows& lane : lanes) rows += lane.logits.dim(0);
  LogitRows all{.logits = ctx.Empty({rows, lanes.front().logits.dim(1)}, DType::kF32)};
  float* next = all.logits.data<float>();
  for (const LogitRows& lane : lanes) {
    next = std::copy_n(lane.logits.data<float>(), lane.logits.numel(), next);
    all.lse.insert(all.lse.end(), lane.lse.begin(), lane.lse.end());
  }
  return all;
}

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

void StepForward::Run(std::span<const StepPlan> plans, const KvBlockPool& pool,
                      int attention_workers, const BatchObserver& observer) {
  const StepPlan& plan = plans[ranks_ == nullptr ? 0 : static_cast<size_t>(ranks_->lane())];
  Batch batch = MakeBatch(*ctx_.allocator, plan, pool);
  batch.observer = observer;
  batch.attention_workers = attention_workers;
  ForwardOptions options;
  for (const StepPlan& lane : plans) {
    options.router.most_tokens = std::max(options.router.most_tokens, lane.tokens());
  }
  const int stage = model_.decoder().part().stages.front();
  DecoderOutput out =
      model_.decoder().ForwardStage(ctx_, stage, Receive(batch, stage), batch, options);
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

bool StepForward::Holds(int lane) const {
  return model_.decoder().part().last() && (ranks_ == nullptr || ranks_->lane() == lane);
}

LogitRows StepForward::Logits(int lane, const RowRange& rows) {
  return Gathered(lane, Holds(lane) ? hidden_.Narrow(rows.begin, rows.count) : Tensor(),
                  rows.count);
}

Tensor StepForward::Hidden(int lane, const RowRange& rows) {
  const int64_t width = model_.spec().hidden;
  return Hand(lane, Holds(lane) ? hidden_.Narrow(rows.begin, rows.count) : Tensor(),
              Shape({rows.count, width}), model_.dtype(), kHiddenLabel);
}

LogitRows StepForward::Sampled(std::span<const StepPlan> plans) {
  std::vector<LogitRows> lanes;
  for (size_t lane = 0; lane < plans.size(); ++lane) {
    const std::vector<int64_t>& rows = plans[lane].sample_rows;
    if (rows.empty()) continue;
    const int index = static_cast<int>(lane);
    lanes.push_back(Gathered(index, Holds(index) ? GatherRows(ctx_, hidden_, rows) : Tensor(),
                             std::ssize(rows)));
  }
  return JoinRows(ctx_, std::move(lanes));
}

// hidden: of the lane's last stage.
LogitRows StepForward::Gathered(int lane, const Tensor& hidden, int64_t rows) {
  LogitRows own;
  if (Holds(lane)) own = ComputeLogits(ctx_, model_.decoder(), hidden);
  if (ranks_ == nullptr || ranks_->results_rank(lane) == 0) return own;
  const Tensor sums = Hand(
      lane,
      Tensor::Of<float>(*ctx_.allocator, {std::ssize(own.lse)}, std::span<const float>(own.lse)),
      Shape({rows}), DType::kF32, kLogitsLabel);
  LogitRows handed{.logits = Hand(lane, own.logits, Shape({rows, model_.spec().vocab}), DType::kF32,
                                  kLogitsLabel)};
  if (sums.defined()) handed.lse.assign(sums.data<float>(), sums.data<float>() + rows);
  return handed;
}

Tensor StepForward::Hand(int lane, const Tensor& own, const Shape& shape, DType dtype,
                         const OpLabel& label) {
  const int owner = ranks_ == nullptr ? 0 : ranks_->results_rank(lane);
  if (owner == 0) return own;
  Communicator& group = *ctx_.groups->world;
  if (group.rank() == owner) Landed(ctx_, *group.Send(own, 0, label), label);
  if (group.rank() != 0) return {};
  const Tensor handed = ctx_.Zeros(shape, dtype);
  Landed(ctx_, *group.Receive(handed, owner, label), label);
  return handed;
}

}  // namespace cadre
