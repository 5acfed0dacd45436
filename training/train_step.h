// TrainStep: forward and backward of one optimizer step's microbatches, leaving the step's
// gradients in the parameter store. The loss has layout-free definitions: every reduction is a sum,
// divided by the step's count of loss tokens, which is known before the first forward.
//
// One thread at a time; enters OpenMP. The model and the context outlive it.
#pragma once

#include <cstdint>
#include <vector>

#include "model/model.h"
#include "moe/balance.h"
#include "proto/train_config.pb.h"
#include "training/sample_stream.h"

namespace cadre {

// What one step trains on, on the host.
struct StepBatches {
  std::vector<PackedBatch> micro;
  std::vector<int64_t> samples;  // indices in the stream, for dumps
  int64_t tokens = 0;
  int64_t loss_tokens = 0;
  int64_t sequences = 0;
};

// Samples [step * global, (step + 1) * global) in microbatches of `micro` rows. Errors are the
// stream's.
absl::StatusOr<StepBatches> ReadStep(SampleStream& stream, int64_t step, int64_t global,
                                     int64_t micro);

struct StepLosses {
  double cross_entropy = 0;  // nats per loss token
  double z_loss = 0;
  double router = 0;  // balance and router z-loss, as added to the loss
  double total() const { return cross_entropy + z_loss + router; }
};

class TrainStep {
 public:
  // `micro_batches`: per step, which tells the store how many gradients each parameter reports.
  TrainStep(Model& model, const config::TrainConfig& config, int64_t micro_batches);

  // Gradients are zeroed first. ctx.step must be the step (it keys the random draws).
  StepLosses Run(Context& ctx, const StepBatches& batches);

  // Applied after the optimizer's update, from the counts of the last Run.
  void UpdateRouterBiases(Context& ctx);

  // Over layers, the largest of the fullest expert's load over the mean; 0 without experts.
  double ExpertLoadMaxOverMean() const;

 private:
  void RunMicroBatch(Context& ctx, const StepBatches& batches, const PackedBatch& packed,
                     int64_t first_token, StepLosses* losses);
  Tensor One(Context& ctx) const;

  Model& model_;
  const config::TrainConfig& config_;
  struct LayerLoad {
    int layer;
    moe::ExpertLoad load;
  };
  std::vector<LayerLoad> loads_;
};

// The batch as the decoder takes it.
Batch ToBatch(Allocator& allocator, const PackedBatch& packed);

// Mean cross entropy per loss token over samples [begin, begin + count), without gradients.
absl::StatusOr<double> EvaluateLoss(Context& ctx, const Model& model, SampleStream& stream,
                                    int64_t begin, int64_t count, int64_t micro);

}  // namespace cadre
