// What rank 0 tells the other ranks of a server, as bytes: a step to run with them, to stop, to
// sleep.
//
// Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/status.h"
#include "serving/step_plan.h"

namespace cadre {

enum class StepKind : int32_t {
  kRun,
  kStop,
  kReport,  // sum what each rank counted (ServingRanks::SumCounts)
  kSleep,   // give memory up, see EngineClient::Sleep
  kWake,    // take it again, and agree on whether all could
};

struct StepMessage {
  StepKind kind = StepKind::kRun;
  int64_t number = 0;                // of the steps that rank 0 told, from 0
  int64_t weight_version = 0;        // of kRun
  int32_t sleep_level = 0;           // of kSleep
  std::vector<StepPlan> plans = {};  // of kRun: one a lane
};

// For ranks of one program: numbers are as this machine has them.
std::vector<std::byte> EncodeStep(const StepMessage& message);
// kDataLoss: bytes that are no message.
absl::StatusOr<StepMessage> DecodeStep(std::span<const std::byte> bytes);

// What a plan may name.
struct StepBounds {
  int64_t vocabulary = 0;
  int64_t positions = 0;
  int64_t blocks = 0;
  int64_t block_size = 0;
  int layers = 0;
};
// A plan may have no tokens. kDataLoss: one that would read or write where it may not, or
// contradicts itself.
absl::Status CheckStep(const StepPlan& plan, const StepBounds& bounds);

}  // namespace cadre
