#include "parallel/pipeline_executor.h"

#include <algorithm>

#include "core/trace.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

// The forward, the backward or both of an action, as messages and passes are keyed.
bool Computes(ActionKind kind) { return kind <= ActionKind::kOverlappedPair; }

bool HasBackward(const std::vector<Action>& actions) {
  return std::ranges::any_of(actions, [](const Action& action) {
    return Computes(action.kind) && action.kind != ActionKind::kForward;
  });
}

bool Receives(ActionKind kind) {
  return kind == ActionKind::kReceiveActivation || kind == ActionKind::kReceiveGradient;
}

OpLabel LabelOf(const Action& action) {
  const bool activation =
      action.kind == ActionKind::kSendActivation || action.kind == ActionKind::kReceiveActivation;
  return {activation ? "activation" : "activation gradient"};
}

}  // namespace

bool PipelineExecutor::Holds(int stage) const {
  const int rank = GroupRank(options_.group);
  return stage >= 0 && stage < schedule_->spec.stages() &&
         RankOfStage(schedule_->spec, stage) == rank;
}

void PipelineExecutor::RunForward(Context& ctx, int stage, int microbatch) {
  TraceScope scope(ctx.trace, "forward", {{"stage", stage}, {"microbatch", microbatch}});
  Pass& pass = passes_[{stage, microbatch}];
  StageInput in{.stage = stage, .microbatch = microbatch, .activation = {pass.activation}};
  CADRE_CHECK(stage == 0 || pass.activation.defined(), "stage {} microbatch {} has no input", stage,
              microbatch);
  if (trains_) {
    pass.tape = std::make_unique<Tape>(options_.accumulate);
    ctx.tape = pass.tape.get();
    if (stage > 0) {
      pass.input = in.activation.slot = pass.tape->NewSlot();
      pass.tape->KeepGrad(pass.input);
    }
  }
  const Var out = (*forward_)(in);
  ctx.tape = nullptr;
  CADRE_CHECK(stage + 1 == schedule_->spec.stages() ||
                  out.value.shape() == options_.shapes[static_cast<size_t>(stage)],
              "stage {} gave {}", stage, out.value.shape().ToString());
  pass.output = out.slot;
  HandOn(stage, microbatch, out.value);
}

void PipelineExecutor::HandOn(int stage, int microbatch, const Tensor& output) {
  const bool last = stage + 1 == schedule_->spec.stages(), here = Holds(stage + 1);
  if (here) passes_[{stage + 1, microbatch}].activation = output;
  passes_.at({stage, microbatch}).activation = last || here ? Tensor() : output;
  if (!trains_ && (last || here)) passes_.erase({stage, microbatch});
}

void PipelineExecutor::SeedOutput(Pass& pass, int stage) {
  if (stage + 1 == schedule_->spec.stages()) return;
  CADRE_CHECK(pass.gradient.defined(), "stage {} has no gradient", stage);
  // Without a slot nothing below it is trained.
  if (pass.output != kNoSlot) pass.tape->Seed(pass.output, std::move(pass.gradient));
  pass.gradient = {};
}

void PipelineExecutor::TakeInputGradient(Context& ctx, int stage, int microbatch) {
  if (stage == 0) return;
  Pass& pass = passes_.at({stage, microbatch});
  Tensor gradient = pass.tape->TakeGrad(ctx, pass.input);
  const Shape& shape = options_.shapes[static_cast<size_t>(stage) - 1];
  gradient = gradient.defined() ? gradient.Reshape(shape) : ctx.Zeros(shape, options_.dtype);
  if (Holds(stage - 1)) {
    passes_.at({stage - 1, microbatch}).gradient = std::move(gradient);
  } else {
    pass.gradient = std::move(gradient);
  }
}

void PipelineExecutor::RunBackward(Context& ctx, const Action& action) {
  const bool pair = action.kind == ActionKind::kOverlappedPair;
  const int stage = pair ? action.backward_stage : action.stage;
  const int microbatch = pair ? action.backward_microbatch : action.microbatch;
  const bool weights = action.kind == ActionKind::kBackwardWeight;
  TraceScope scope(ctx.trace, weights ? "backward weights" : "backward",
                   {{"stage", stage}, {"microbatch", microbatch}});
  Pass& pass = passes_.at({stage, microbatch});
  ctx.tape = pass.tape.get();
  if (weights) {
    pass.tape->BackwardWeights(ctx);
  } else {
    SeedOutput(pass, stage);
    if (action.kind == ActionKind::kBackwardInput) {
      pass.tape->BackwardInputs(ctx);
    } else {
      pass.tape->Backward(ctx);
    }
    TakeInputGradient(ctx, stage, microbatch);
  }
  ctx.tape = nullptr;
  if (action.kind == ActionKind::kBackwardInput) return;
  pass.tape = nullptr;
  // A gradient that goes to another rank is still to be sent.
  if (!pass.gradient.defined()) passes_.erase({stage, microbatch});
}

void PipelineExecutor::Send(const Action& action, Tensor Pass::*what) {
  const auto pass = passes_.find({action.stage, action.microbatch});
  CADRE_CHECK(pass != passes_.end(), "{}: no such pass", ToString(action));
  const Tensor tensor = std::exchange(pass->second.*what, {});
  CADRE_CHECK(tensor.defined() && tensor.dtype() == options_.dtype, "{}: {}", ToString(action),
              tensor.defined() ? Name(tensor.dtype()) : "nothing");
  sends_.push_back(options_.group->Send(tensor, action.peer, LabelOf(action)));
  // Without a tape no backward is to come.
  if (pass->second.tape == nullptr) passes_.erase(pass);
}

void PipelineExecutor::Post(Context& ctx, const Action& action) {
  // The stage whose activation it is, or the gradient of whose.
  const int from = action.stage - (action.kind == ActionKind::kReceiveActivation ? 1 : 0);
  const Tensor tensor = ctx.Empty(options_.shapes[static_cast<size_t>(from)], options_.dtype);
  incoming_.push_back({tensor, options_.group->Receive(tensor, action.peer, LabelOf(action))});
}

void PipelineExecutor::PostNext(Context& ctx, std::span<const Action> actions) {
  for (const Action& action : actions) {
    if (Computes(action.kind)) break;
    if (Receives(action.kind)) Post(ctx, action);
  }
}

absl::StatusOr<Tensor> PipelineExecutor::Receive(Context& ctx, const Action& action) {
  if (incoming_.empty()) Post(ctx, action);
  const Incoming incoming = std::move(incoming_.front());
  incoming_.pop_front();
  if (!Landed(ctx, *incoming.work, LabelOf(action))) return ctx.groups->failure;
  return incoming.tensor;
}

absl::Status PipelineExecutor::Execute(Context& ctx, const Action& action) {
  const Key key{action.stage, action.microbatch};
  switch (action.kind) {
    case ActionKind::kForward:
      RunForward(ctx, action.stage, action.microbatch);
      break;
    case ActionKind::kOverlappedPair:
      RunForward(ctx, action.stage, action.microbatch);
      RunBackward(ctx, action);
      break;
    case ActionKind::kBackward:
    case ActionKind::kBackwardInput:
    case ActionKind::kBackwardWeight:
      RunBackward(ctx, action);
      break;
    case ActionKind::kSendActivation:
      Send(action, &Pass::activation);
      break;
    case ActionKind::kSendGradient:
      Send(action, &Pass::gradient);
      break;
    case ActionKind::kReceiveActivation: {
      CADRE_ASSIGN_OR_RETURN(passes_[key].activation, Receive(ctx, action));
      break;
    }
    case ActionKind::kReceiveGradient: {
      CADRE_ASSIGN_OR_RETURN(passes_.at(key).gradient, Receive(ctx, action));
      break;
    }
    // Weights are gathered and gradients reduced where they are leased and complete; the caller
    // runs the optimizer.
    case ActionKind::kUnshard:
    case ActionKind::kReshard:
    case ActionKind::kReduceGradient:
    case ActionKind::kOptimizer:
      break;
    case ActionKind::kRecompute:
      CADRE_CHECK(false, "{} is not executed", ToString(action));
  }
  return ctx.groups == nullptr ? absl::OkStatus() : ctx.groups->failure;
}

absl::Status PipelineExecutor::Run(Context& ctx, const Schedule& schedule, const Forward& forward) {
  const auto rank = static_cast<size_t>(GroupRank(options_.group));
  CADRE_CHECK(schedule.spec.ranks == GroupSize(options_.group), "a schedule of {} ranks over {}",
              schedule.spec.ranks, GroupSize(options_.group));
  schedule_ = &schedule;
  forward_ = &forward;
  passes_.clear();
  sends_.clear();
  incoming_.clear();
  const std::span<const Action> actions = schedule.ranks[rank];
  trains_ = HasBackward(schedule.ranks[rank]);
  for (size_t i = 0; i < actions.size(); ++i) {
    if (Computes(actions[i].kind)) PostNext(ctx, actions.subspan(i + 1));
    CADRE_RETURN_IF_ERROR(Execute(ctx, actions[i]));
    while (!sends_.empty() && sends_.front()->done()) {
      CADRE_RETURN_IF_ERROR(sends_.front()->Wait());
      sends_.pop_front();
    }
  }
  for (const WorkPtr& send : sends_) {
    if (!Landed(ctx, *send, {"activations sent"})) return ctx.groups->failure;
  }
  sends_.clear();
  CADRE_CHECK(!trains_ || passes_.empty(), "{} passes are not finished", passes_.size());
  return absl::OkStatus();
}

}  // namespace cadre
