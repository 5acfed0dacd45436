// TrainStep: forward and backward of one optimizer step's microbatches, leaving the step's
// gradients in the parameter store. The loss has layout-free definitions: every reduction is a sum,
// divided by the step's count of loss tokens, which is known before the first forward.
//
// One thread at a time; enters OpenMP. The model and the context outlive it.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "model/model.h"
#include "moe/balance.h"
#include "parallel/layout.h"
#include "parallel/pipeline_executor.h"
#include "proto/train_config.pb.h"
#include "training/sample_stream.h"

namespace cadre {

// What one step trains on, on the host: this rank's microbatches, and what the whole step has.
struct StepBatches {
  std::vector<PackedBatch> micro;
  std::vector<int64_t> samples;  // indices in the stream, for dumps
  int64_t first_token = 0;       // of the first sample, in the step's batch

  // Of this rank's batches as read; of the step once they are summed over the ranks.
  int64_t tokens = 0;
  int64_t loss_tokens = 0;
  int64_t sequences = 0;
  int64_t microbatches = 0;
};

struct StepShape {
  int64_t global = 1;  // samples of a step
  int64_t micro = 1;   // of a microbatch
  // This rank's place among the data-parallel ranks: each takes the next global / ranks samples,
  // whole also where context-parallel ranks share them.
  int64_t rank = 0;
  int64_t ranks = 1;
};

// This rank's share of samples [step * global, (step + 1) * global). Errors are the stream's.
absl::StatusOr<StepBatches> ReadStep(SampleStream& stream, int64_t step, const StepShape& shape);

struct StepLosses {
  double cross_entropy = 0;  // nats per loss token
  double z_loss = 0;
  double router = 0;  // balance and router z-loss, as added to the loss
  double total() const { return cross_entropy + z_loss + router; }
};

class TrainStep {
 public:
  // Tells the store how many passes make a step's gradients.
  TrainStep(Model& model, const config::TrainConfig& config, const Layout& layout);

  // This rank's stages on its microbatches, in the order of the layout's schedule. Gradients are
  // zeroed first. ctx.step must be the step (it keys the random draws). The losses are this rank's
  // share of the step's: the cross entropy is the last stage's. Fails where communication does.
  absl::StatusOr<StepLosses> Run(Context& ctx, const StepBatches& batches);

  // Called for every microbatch and mixture layer with the step: for tests.
  void InspectRouting(std::function<void(int64_t step, const RoutedTokens&)> inspect) {
    inspect_routing_ = std::move(inspect);
  }

  // Tokens that each expert of each mixture layer of this rank was given in the last Run, layer by
  // layer: to be summed over the ranks, and read by what follows.
  std::vector<int64_t> ExpertCounts() const;
  void SetExpertCounts(std::span<const int64_t> counts);

  // In the last Run, of this rank's choices of experts: those over capacity.
  int64_t dropped() const { return dropped_; }

  // Applied after the optimizer's update.
  void UpdateRouterBiases(Context& ctx);

  // Over layers, the largest of the fullest expert's load over the mean; 0 without experts.
  double ExpertLoadMaxOverMean() const;

 private:
  ForwardOptions OptionsOf(const StepBatches& batches) const;
  Var RunStage(Context& ctx, const StepBatches& batches, const StageInput& in, StepLosses* losses);
  void SeedLoss(Context& ctx, const StepBatches& batches, const Tensor& targets, const Var& hidden,
                StepLosses* losses);

  Model& model_;
  const config::TrainConfig& config_;
  const Schedule schedule_;
  struct LayerLoad {
    int layer;
    moe::ExpertLoad load;
  };
  std::vector<LayerLoad> loads_;
  int64_t dropped_ = 0;
  std::function<void(int64_t, const RoutedTokens&)> inspect_routing_;
};

// The batch as the decoder takes it: this rank's tokens, where context-parallel ranks share them.
Batch ToBatch(Context& ctx, const PackedBatch& packed);
// i32 [tokens] of that batch.
Tensor Targets(Context& ctx, const Batch& batch, const PackedBatch& packed);

// How stages hand on a microbatch like `packed`.
PipelineExecutor::Options PipelineOptions(const Context& ctx, const Model& model,
                                          const PackedBatch& packed);

}  // namespace cadre
