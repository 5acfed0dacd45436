// PipelineExecutor: walks one rank's actions of a schedule (schedule.h). Computations run on the
// calling thread, each microbatch of a stage on a tape of its own; activations and their gradients
// go to the neighbour stages, over the pipeline's group or within the rank. What the next
// computation takes from a neighbour is asked for before this one begins, so it travels meanwhile.
//
//   PipelineExecutor executor({.group = groups.pp, .shapes = {{T, D}}, .dtype = DType::kBF16});
//   CADRE_RETURN_IF_ERROR(executor.Run(ctx, schedule, [&](const StageInput& in) -> Var {
//     return Stage(in.stage).Forward(ctx, batches[in.microbatch], in.activation);
//   }));
//
// One thread, which enters OpenMP. The group and the context outlive it.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/status.h"
#include "core/tape.h"
#include "parallel/communicator.h"
#include "parallel/schedule.h"

namespace cadre {

struct StageInput {
  int stage = 0;
  int microbatch = 0;
  Var activation;  // what the stage before gave; undefined for the first stage
};

class PipelineExecutor {
 public:
  struct Options {
    Communicator* group = nullptr;  // the pipeline's ranks in order; null for one rank
    std::vector<Shape> shapes;      // of what each stage but the last hands on
    DType dtype = DType::kF32;      // of that and of its gradient
    Tape::Accumulate accumulate = nullptr;
  };
  // Returns what goes to the next stage; what the last stage returns is not used. The last stage
  // seeds ctx.tape with the gradient of its loss, other stages may with losses of their own.
  using Forward = std::function<Var(const StageInput&)>;

  explicit PipelineExecutor(const Options& options) : options_(options) {}

  // All actions, up to the last send's landing. ctx.tape is set while a computation runs and null
  // afterwards; where the schedule has no backward it stays null. Where communication failed, its
  // status; what was computed is then of no use.
  absl::Status Run(Context& ctx, const Schedule& schedule, const Forward& forward);

 private:
  // One stage's work on one microbatch, from its first action to its last.
  struct Pass {
    std::unique_ptr<Tape> tape;
    SlotId input = kNoSlot, output = kNoSlot;
    Tensor activation;  // before the forward what it takes, then what it gave
    Tensor gradient;    // before the backward the output's, then the input's
  };
  using Key = std::pair<int, int>;  // stage, microbatch
  struct Incoming {
    Tensor tensor;
    WorkPtr work;
  };

  absl::Status Execute(Context& ctx, const Action& action);
  void RunForward(Context& ctx, int stage, int microbatch);
  void RunBackward(Context& ctx, const Action& action);
  void HandOn(int stage, int microbatch, const Tensor& output);
  void SeedOutput(Pass& pass, int stage);
  void TakeInputGradient(Context& ctx, int stage, int microbatch);
  bool Holds(int stage) const;
  // The pass's tensor of that name, which the pass lets go.
  void Send(const Action& action, Tensor Pass::*what);
  // What `action`, a receive, asks for.
  void Post(Context& ctx, const Action& action);
  // The receives among `actions` up to the next computation.
  void PostNext(Context& ctx, std::span<const Action> actions);
  absl::StatusOr<Tensor> Receive(Context& ctx, const Action& action);

  const Options options_;
  const Schedule* schedule_ = nullptr;
  const Forward* forward_ = nullptr;
  bool trains_ = false;
  std::map<Key, Pass> passes_;
  std::deque<WorkPtr> sends_;
  std::deque<Incoming> incoming_;  // in the schedule's order
};

}  // namespace cadre
