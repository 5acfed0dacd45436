// Trainer: one rank's part of a training run, from its configuration to its last checkpoint. Rank 0
// alone writes the files of the run and shows progress.
//
//   CADRE_ASSIGN_OR_RETURN(auto trainer, Trainer::Create(config, options));
//   CADRE_RETURN_IF_ERROR(trainer->Run());
//
// DIR/config.yaml         the resolved configuration
// DIR/metrics.jsonl       a line per step; on a resume cut back to the checkpoint's step
// DIR/events.out.tfevents.*   the same for TensorBoard
// DIR/checkpoints/        see training/checkpoint_folder.h
// DIR/bad_steps/          batches of steps that were not finite or spiked
//
// A resumed run gives the same bits as an undisturbed one. One thread calls.
#pragma once

#include <atomic>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "core/file_lock.h"
#include "core/host_allocator.h"
#include "core/metrics.h"
#include "core/ops/gemm.h"
#include "core/progress.h"
#include "core/trace.h"
#include "model/model.h"
#include "proto/train_config.pb.h"
#include "training/checkpoint.h"
#include "training/gradient_norm.h"
#include "training/lr_schedule.h"
#include "training/memory_plan.h"
#include "training/optimizer.h"
#include "training/step_guard.h"
#include "training/train_step.h"
#include "training/training_ranks.h"

namespace spdlog {
class logger;
}

namespace cadre {

struct TrainerOptions {
  std::string output;
  bool resume = true;  // from the newest good checkpoint of the output folder, where there is one
  int threads = 1;
  std::FILE* progress = nullptr;  // borrowed; null: no progress
  bool terminal = false;
  int columns = 80;
  Trace* trace = nullptr;
  spdlog::logger* log = nullptr;            // borrowed, never null
  const std::atomic<bool>* stop = nullptr;  // set: save and return; may be null
  // Called once a step, when gradients are summed and before they are clipped: for tests and dumps.
  // `owned`: the part of each bucket that has them on this rank.
  std::function<void(int64_t step, ParameterStore& store, const std::vector<Shard>& owned)>
      inspect_gradients;
  // Called for every microbatch and mixture layer, in its forward pass: for tests.
  std::function<void(int64_t step, const RoutedTokens& routed)> inspect_routing;
  // The ranks that train together, each with a trainer of its own; null: this one alone.
  World* world = nullptr;
  Mesh::Wrap wrap_group;               // see Mesh
  FlightRecorder* recorder = nullptr;  // borrowed; null: nobody watches
};

class Trainer {
 public:
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const config::TrainConfig& config,
                                                         const TrainerOptions& options);
  ~Trainer();

  // Ends after train_steps, or early with everything saved where *stop was set. kDataLoss where the
  // bad-step policy or the data stopped it, and only then.
  absl::Status Run();

  // The mean loss of every step that this object ran, the same on all ranks.
  const std::vector<double>& losses() const { return losses_; }
  // The held-out losses that it measured, by steps done; the same on all ranks.
  const std::map<int64_t, double>& evaluations() const { return evaluations_; }
  int64_t step() const { return step_; }
  const MemoryPlan& plan() const { return plan_; }
  // The most that was alive in tensors at once.
  size_t peak_bytes() const { return allocator_.usage().peak_bytes; }

 private:
  struct StepReport {
    StepLosses losses;
    double gradient_norm = 0, lr = 0, seconds = 0;
    double expert_load = 0;               // the fullest expert's over the mean, of all layers
    std::optional<double> dropped_share;  // of all choices of experts, where there is a capacity
    int64_t tokens = 0;
    bool applied = true;
    std::optional<double> eval_loss;
  };

  Trainer(const config::TrainConfig& config, const TrainerOptions& options, const Layout& layout);
  absl::Status Open();
  absl::Status OpenOutput();
  absl::Status OpenData();
  absl::Status OpenModel();
  PlanArgs PlanOf(const DecoderSpec& spec) const;
  absl::Status OpenState();
  absl::Status Resume();
  absl::StatusOr<std::optional<FoundCheckpoint>> FindResumePoint(const std::string& root);
  absl::Status Restore(const FoundCheckpoint& found);
  absl::Status StartAnew(const std::string& root);
  absl::Status OpenMetrics(double ranks_at_once);
  void PrintPlan() const;
  void ReportMemory() const;
  // With a line of its own, where one is being redrawn.
  spdlog::logger& Log();

  absl::StatusOr<StepReport> Step();
  absl::StatusOr<StepBatches> ReadBatches();
  absl::Status SumLosses(StepLosses* losses);
  absl::Status ComputeGradients(const StepBatches& batches, StepReport* report);
  // own_counts: TrainStep::ExpertCounts before they are summed.
  absl::Status SumDropped(std::span<const int64_t> own_counts, StepReport* report);
  absl::Status Update(const StepReport& report);
  absl::Status Judge(const StepBatches& batches, StepReport* report);
  void Report(const StepReport& report);
  absl::Status MaybeSave(bool last);
  absl::StatusOr<double> Evaluate();
  absl::StatusOr<bool> Stopping();

  const config::TrainConfig config_;
  const TrainerOptions options_;
  std::optional<FileLock> lock_;  // rank 0's; goes after all that writes
  HostAllocator allocator_;
  PackedWeights packed_;
  Context ctx_;
  TrainingRanks ranks_;
  std::string model_source_;      // folder with the model's other files, or empty
  std::string tokenizer_folder_;  // or empty
  std::unique_ptr<Model> model_;
  std::optional<SampleStream> stream_, validation_;
  std::unique_ptr<Optimizer> optimizer_;
  std::vector<ParamChunk> chunks_;
  std::optional<LrSchedule> schedule_;
  std::optional<StepGuard> guard_;
  std::optional<TrainStep> step_runner_;
  std::unique_ptr<CheckpointSaver> saver_;
  std::optional<JsonlWriter> metrics_;
  std::optional<TensorBoardWriter> tensorboard_;
  std::optional<Progress> progress_;
  MeasuredMemory measured_;
  MemoryPlan plan_;
  double peak_flops_ = 0;
  double flops_per_token_ = 0;
  int64_t step_ = 0;    // steps done
  int64_t saved_ = -1;  // the newest step handed to the saver
  int64_t tokens_ = 0;
  double expert_load_ = 0;  // rank 0's, the most of all steps
  std::vector<double> losses_;
  std::map<int64_t, double> evaluations_;
};

}  // namespace cadre
