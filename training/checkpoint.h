// Checkpoints: a training run's whole state as a folder that Hugging Face tools open.
//
//   step-000200/manifest.json                   see training/manifest.h
//   step-000200/config.json, *.safetensors, …   weights and tokenizer, by the caller's SaveWeights
//   step-000200/train_config.yaml               the resolved configuration
//   step-000200/optimizer/SLOT.safetensors      master, exp_avg, exp_avg_sq: one tensor a parameter
//
// `master` holds every parameter that a run changes at full precision (f32, f64 in an f64 run), so
// a resume gives the same bits whatever type the weights' own files are in.
//
// CheckpointSaver copies the state to a snapshot while the step waits, and a worker thread writes
// it; a failed save leaves earlier checkpoints as they were, and is reported by Poll.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "core/status.h"
#include "training/checkpoint_folder.h"
#include "training/manifest.h"
#include "training/optimizer.h"

namespace cadre {

// A parameter's values in its logical shape, in any floating dtype.
using ParameterValues = std::function<Tensor(ParamId)>;
// Writes the weights (and config.json, tokenizer files) into a folder, every file synced. Called on
// the saver's thread; must not enter OpenMP with more than one thread.
using SaveWeightsFn =
    std::function<absl::Status(const std::string& folder, const ParameterValues& values)>;
// Fills every parameter of the store from a folder.
using LoadWeightsFn = std::function<absl::Status(const std::string& folder)>;

struct CheckpointSaverOptions {
  std::string root;
  int keep_last = 3;
  bool async = true;
  SaveWeightsFn save_weights;
};

class CheckpointSaver {
 public:
  // Allocates the snapshot where `async`. Everything given outlives the saver.
  CheckpointSaver(CheckpointSaverOptions options, const ParameterStore& store,
                  const Optimizer& optimizer, Allocator& allocator);
  // Waits for a running save.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // Saves the state as it is now. Waits while an earlier save still runs; then returns after the
  // snapshot is taken (async) or all is written. Its outcome comes from Poll or Wait.
  void Save(Context& ctx, CheckpointState state);

  // Never waits. The error of a save that ended since the last call, once; OK otherwise.
  absl::Status Poll();
  // Waits for a running save, then as Poll.
  absl::Status Wait();

  // Steps that this saver has saved whole, the newest; -1 before the first.
  int64_t saved_step() const { return saved_step_; }

 private:
  struct Snapshot {
    std::vector<Tensor> weights;  // one per bucket; as precise as there is
    std::vector<OptimizerSlot> slots;
  };
  void TakeSnapshot(Context& ctx);
  absl::Status Write(const Snapshot& snapshot, const CheckpointState& state);
  absl::Status WriteInto(const std::string& folder, const Snapshot& snapshot,
                         const CheckpointState& state);
  absl::Status WriteSlot(const std::string& folder, const OptimizerSlot& slot);

  CheckpointSaverOptions options_;
  const ParameterStore& store_;
  Snapshot live_;  // the run's own tensors
  Snapshot copy_;  // allocated where async
  std::thread worker_;
  std::atomic<bool> running_ = false;
  std::atomic<int64_t> saved_step_ = -1;
  absl::Status outcome_;  // written before running_ becomes false, read after
};

// Bytes of the snapshot that an async saver allocates; callable before the store is allocated.
int64_t SnapshotBytes(const config::OptimizerConfig& config, const ParameterStore& store,
                      DType compute);
// Bytes of the largest weight that is converted on its way into a checkpoint, one at a time.
int64_t WriteBufferBytes(const ParameterStore& store, DType compute);

// Fills the store and the optimizer from a checkpoint whose files VerifyFiles has accepted.
// `model_config` must equal the manifest's; every parameter that the run changes must be there with
// its shape, and nothing else. Calls WeightsChanged.
absl::Status LoadCheckpoint(const FoundCheckpoint& found, const std::string& model_config,
                            const LoadWeightsFn& load_weights, ParameterStore& store,
                            Optimizer& optimizer);

// Fills the parameters that a checkpoint has at full precision; the others stay as they are. For
// exports: needs no optimizer. A parameter that the store does not have is an error.
absl::Status LoadPreciseWeights(const std::string& checkpoint, ParameterStore& store);

}  // namespace cadre
