// StepForward: what every rank of a server does of one step, in the same order: the plan's forward
// with its part of the weights, then the logits that the plan asks for. One process does all of it.
//
//   forward.Run(plans, pool);
//   for (lane, rows of plans[lane].scored) forward.Logits(lane, rows);
//   for (lane, rows of plans[lane].pooled) forward.Hidden(lane, rows);
//   forward.Sampled(plans);
//
// A rank runs the plan of its lane (serving/lanes.h), of no tokens where there is nothing to do in
// it, since the others' tokens may need its experts.
//
// Over ranks the results are on rank 0 alone: columns of the vocabulary are gathered, pipeline
// stages hand their hidden states on, and the last one what it makes of them to rank 0. What fails
// is left in the context's groups (parallel/groups.h), and the results then mean nothing.
//
// The thread that runs the forward. T tokens, D model, V vocabulary.
#pragma once

#include <span>

#include "core/context.h"
#include "memory/kv_block_pool.h"
#include "model/model.h"
#include "parallel/communicator.h"
#include "serving/logit_rows.h"
#include "serving/serving_ranks.h"
#include "serving/step_plan.h"

namespace cadre {

class StepForward {
 public:
  // All outlive this. ranks: null where one process does all.
  StepForward(Context& ctx, const Model& model, const ServingRanks* ranks)
      : ctx_(ctx), model_(model), ranks_(ranks) {}

  // The plans, one a lane, are checked (step_message.h). attention_workers: see Batch.
  void Run(std::span<const StepPlan> plans, const KvBlockPool& pool, int attention_workers,
           const BatchObserver& observer = {});
  // Adds a hidden state [1, D] to the last Run's, or to none; returns its row. In one process.
  int64_t Join(const Tensor& row);
  // Of rows of the lane's plan in the last Run.
  LogitRows Logits(int lane, const RowRange& rows);
  // After the final norm: [rows.count, D].
  Tensor Hidden(int lane, const RowRange& rows);
  // Of the plans' sample_rows, lane after lane.
  LogitRows Sampled(std::span<const StepPlan> plans);
  // Of the last Run's tokens and this rank's mixture layers.
  std::span<const LayerRouting> routing() const { return routing_; }

 private:
  Var Receive(const Batch& batch, int stage);
  // Whether this rank has the hidden states of the lane's last stage.
  bool Holds(int lane) const;
  LogitRows Gathered(int lane, const Tensor& hidden, int64_t rows);
  // Gives rank 0 what the rank that has the lane's results computed; rank 0's own is of that shape,
  // too.
  Tensor Hand(int lane, const Tensor& own, const Shape& shape, DType dtype, const OpLabel& label);

  Context& ctx_;
  const Model& model_;
  const ServingRanks* ranks_;
  Tensor hidden_;  // [T, D] of the last stage
  std::vector<LayerRouting> routing_;
};

}  // namespace cadre
