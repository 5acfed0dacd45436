// Checkpoints: a training run's whole state as a folder that Hugging Face tools open.
//
//   step-000200/manifest.json                   see training/manifest.h
//   step-000200/config.json, *.safetensors, …   weights and tokenizer, by the caller's SaveWeights
//   step-000200/train_config.yaml               the resolved configuration
//   step-000200/optimizer/SLOT.safetensors      master, exp_avg, exp_avg_sq: named, shaped and,
//   above
//                                               max_shard_bytes, split as the weights are
//
// Weights and slots are stored by Hugging Face tensor, whatever the layout of the run that wrote
// them, so any other layout reads its own slices of them. Several ranks write one checkpoint: every
// element once, each file as one process would have written it.
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
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "core/context.h"
#include "core/parameters.h"
#include "core/status.h"
#include "parallel/communicator.h"
#include "training/checkpoint_folder.h"
#include "training/checkpoint_state.h"
#include "training/manifest.h"
#include "training/optimizer.h"

namespace cadre {

// Writes the weights (and config.json, tokenizer files) into a folder, every file synced, together
// with the ranks of `group` (null: one process). Called on the saver's thread; must not enter
// OpenMP with more than one thread.
using SaveWeightsFn = std::function<absl::Status(
    const std::string& folder, std::span<const ParamPiece> weights, Communicator* group)>;
// Fills every parameter of the store from a folder.
using LoadWeightsFn = std::function<absl::Status(const std::string& folder)>;

struct CheckpointSaverOptions {
  std::string root;
  int keep_last = 3;
  bool async = true;
  int64_t max_shard_bytes = 5'000'000'000;  // of a file of optimizer state
  SaveWeightsFn save_weights;
  // The ranks that write together; null: one process. Used by the saver's own thread alone: nothing
  // else may run on it.
  Communicator* group = nullptr;
};

class CheckpointSaver {
 public:
  // Allocates the snapshot where `async`. Everything given outlives the saver.
  CheckpointSaver(CheckpointSaverOptions options, const ParameterStore& store, StatePart state,
                  Allocator& allocator);
  // One process: all of the store and of the optimizer.
  CheckpointSaver(CheckpointSaverOptions options, const ParameterStore& store,
                  const Optimizer& optimizer, Allocator& allocator)
      : CheckpointSaver(std::move(options), store, StateOf(store, optimizer), allocator) {}
  // Waits for a running save.
  ~CheckpointSaver();
  CheckpointSaver(const CheckpointSaver&) = delete;
  CheckpointSaver& operator=(const CheckpointSaver&) = delete;

  // Saves the state as it is now. Waits while an earlier save still runs; then returns after the
  // snapshot is taken (async) or all is written. Its outcome comes from Poll or Wait. All ranks of
  // the group save the same steps, and a save that fails on one fails on all with that rank's
  // error.
  void Save(Context& ctx, CheckpointState state);

  // Never waits. The error of a save that ended since the last call, once; OK otherwise.
  absl::Status Poll();
  // Waits for a running save, then as Poll.
  absl::Status Wait();

  // Steps that this saver has saved whole, the newest; -1 before the first.
  int64_t saved_step() const { return saved_step_; }

 private:
  void TakeSnapshot(Context& ctx);
  // By one rank alone, then the outcome of that on all.
  template <typename Body>
  absl::Status ByFirstRank(const char* what, Body&& body);
  absl::Status CheckTogether(const CheckpointState& state);
  // The folder to write into, the same one on all ranks.
  absl::StatusOr<std::string> StartTogether(int64_t step);
  absl::Status Write(const StatePart& snapshot, const CheckpointState& state);
  absl::Status WriteTogether(const StatePart& snapshot, const CheckpointState& state);
  absl::Status WriteInto(const std::string& folder, const StatePart& snapshot,
                         const CheckpointState& state);
  absl::Status WriteSlot(const std::string& folder, const StateSlot& slot);

  CheckpointSaverOptions options_;
  const ParameterStore& store_;
  StatePart live_;  // the run's own tensors
  StatePart copy_;  // allocated where async
  std::thread worker_;
  std::atomic<bool> running_ = false;
  std::atomic<int64_t> saved_step_ = -1;
  absl::Status outcome_;  // written before running_ becomes false, read after
};

// Bytes of the snapshot that an async saver allocates for `part` of each bucket (empty: all of
// all); callable when the store has buckets, before it is allocated.
int64_t SnapshotBytes(const config::OptimizerConfig& config, const ParameterStore& store,
                      std::span<const Shard> part = {});
// Bytes of the store's tensors that are on their way into a checkpoint at once, at most.
int64_t WriteBufferBytes(const ParameterStore& store);

// Fills the store and the optimizer from a checkpoint whose files VerifyFiles has accepted.
// `model_config` must equal the manifest's; every parameter that the run changes must be there with
// its shape, and nothing else (where the store is a part of the model, what it does not know is
// another rank's). Each rank reads its own slices; nothing is collective. Calls WeightsChanged.
// owned: what the optimizer was made with.
absl::Status LoadCheckpoint(const FoundCheckpoint& found, const std::string& model_config,
                            const LoadWeightsFn& load_weights, ParameterStore& store,
                            Optimizer& optimizer, const std::vector<Shard>& owned = {});

// The same into any `state`. Compute weights are the rounded masters in the elements that `state`
// has, and as load_weights leaves them elsewhere, which is the same where the saving run's compute
// type was this one's. The caller tells its optimizer the updates that the manifest names.
absl::Status LoadCheckpointState(const FoundCheckpoint& found, const std::string& model_config,
                                 const LoadWeightsFn& load_weights, ParameterStore& store,
                                 const StatePart& state);

// Fills the parameters that a checkpoint has at full precision; the others stay as they are. For
// exports: needs no optimizer. A parameter that the store does not have is an error.
absl::Status LoadPreciseWeights(const std::string& checkpoint, ParameterStore& store);

}  // namespace cadre
