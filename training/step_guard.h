// StepGuard decides what happens to a step whose loss or gradient norm is not finite, or whose
// gradient norm is far above its running median. It looks at numbers that are the same on every
// rank, so every rank decides alike. Its state is small and part of the checkpoint, so a resumed
// run decides as an undisturbed one would.
//
// One thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "proto/train_config.pb.h"

namespace cadre {

struct StepVerdict {
  enum class Action : uint8_t { kApply, kSkip, kStop };
  Action action = Action::kApply;
  bool bad = false;    // also where a spike is applied all the same
  std::string reason;  // one line, empty where the step is good
};

// What of a StepGuard a checkpoint keeps.
struct StepGuardState {
  std::vector<double> norms;  // the last spike_window finite norms, oldest first
  int32_t skipped_in_row = 0;
};

class StepGuard {
 public:
  explicit StepGuard(const config::BadStepConfig& config) : config_(config) {}

  // Called once a step, in order, before its update. `gradient_norm` is before clipping.
  StepVerdict Judge(int64_t step, double loss, double gradient_norm);

  const StepGuardState& state() const { return state_; }
  // A longer history than spike_window loses its oldest part.
  void Restore(StepGuardState state);

 private:
  StepVerdict Act(config::BadStepAction action, std::string reason);

  config::BadStepConfig config_;
  StepGuardState state_;
};

// A bad step's batch: what someone needs to see which data broke the run.
struct BadStepDump {
  int64_t step = 0;
  double loss = 0.0;
  double gradient_norm = 0.0;
  std::string reason;
  std::vector<int64_t> samples;           // indices in the sample stream
  std::vector<std::vector<int32_t>> ids;  // one per sample
  std::vector<std::vector<int32_t>> targets;
};

// Writes FOLDER/step-NNNNNN.json whole or not at all, creating FOLDER where it is missing. Returns
// the path. Numbers that are not finite are written as strings ("nan", "inf").
absl::StatusOr<std::string> WriteBadStep(const std::string& folder, const BadStepDump& dump);

}  // namespace cadre
