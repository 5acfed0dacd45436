// Pipeline schedules as data: for each rank of the pipeline the actions of one step, in order.
//
//   CADRE_ASSIGN_OR_RETURN(const Schedule schedule, MakeSchedule({.kind = layout.schedule,
//       .ranks = layout.pp, .stages_per_rank = layout.stages_per_rank, .microbatches = m}));
//   for (const Action& action : schedule.ranks[my_rank]) Execute(action);
//
// The model is cut into ranks * stages_per_rank stages. An executor walks its rank's vector:
// computations run there and then; a send starts a transfer and goes on; a receive waits until its
// message is there. Between two ranks messages arrive in the order in which they were sent, and a
// rank's receives from a peer stand in the order of that peer's sends, activations and gradients
// together. What one rank's stages hand to one another is not sent. A stage's weight gradients are
// added in rising order of the microbatches, so that all schedules give the same bits.
//
// Pure functions and plain data, callable from any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre {
namespace config {
enum PipelineSchedule : int;
}

enum class ActionKind : uint8_t {
  kForward,
  kBackward,        // gradients of inputs and weights
  kBackwardInput,   // the two apart
  kBackwardWeight,  //
  kOverlappedPair,  // a forward and a full backward, the one's messages under the other's products
  kSendActivation,  // `stage` made it; peer holds stage + 1
  kReceiveActivation,  // `stage` takes it; peer holds stage - 1
  kSendGradient,       // `stage` made it; peer holds stage - 1
  kReceiveGradient,    // `stage` takes it; peer holds stage + 1
  kUnshard,            // the stage's weights are gathered
  kReshard,            // and dropped
  kRecompute,          // the stage's activations, from its input
  kReduceGradient,     // the stage's gradients are complete: what is not reduced yet is now
  kOptimizer,          // the step's last action, of all the rank's stages; stage and microbatch -1
};

struct Action {
  ActionKind kind = ActionKind::kForward;
  int16_t peer = -1;            // sends and receives: rank in the pipeline
  int16_t stage = -1;           // overlapped pair: the forward's
  int16_t backward_stage = -1;  // overlapped pair
  int32_t microbatch = -1;      // overlapped pair: the forward's
  int32_t backward_microbatch = -1;

  friend bool operator==(const Action&, const Action&) = default;
};
// "send_activation stage 1 microbatch 3 to rank 2".
std::string ToString(const Action& action);

struct ScheduleSpec {
  config::PipelineSchedule kind{};  // 1f1b
  int ranks = 1;                    // of the pipeline
  int stages_per_rank = 1;
  int microbatches = 1;
  bool recompute = false;  // a stage keeps its input alone and computes again before its backward
  bool unshard = false;    // a stage's weights are gathered for each run of its actions

  int stages() const { return ranks * stages_per_rank; }
};

struct Schedule {
  ScheduleSpec spec;
  std::vector<std::vector<Action>> ranks;
};

// "1f1b", as in YAML.
std::string_view Name(config::PipelineSchedule kind);
// kInvalidArgument lists the names.
absl::StatusOr<config::PipelineSchedule> FindSchedule(std::string_view name);
std::vector<config::PipelineSchedule> AllSchedules();

// The fewest stages on a rank that the schedule takes.
int LeastStagesPerRank(config::PipelineSchedule kind);

// Whether the generator takes these; kInvalidArgument names what it takes, for microbatches the
// nearest count.
absl::Status CheckStages(const ScheduleSpec& spec);
absl::Status CheckMicrobatches(const ScheduleSpec& spec);

// Both checks, then the schedule. It is the same on every rank that asks for it.
absl::StatusOr<Schedule> MakeSchedule(const ScheduleSpec& spec);

// The forwards alone, as an evaluation runs them: a rank's stages one after the other. Any number of
// microbatches, whose activations between two stages of a rank are held at once.
Schedule MakeForwardSchedule(const ScheduleSpec& spec);

// Which rank of the pipeline holds a stage.
int RankOfStage(const ScheduleSpec& spec, int stage);

// The stages' forwards whose backward is not done that the schedule promises `rank` never exceeds.
int MostInFlight(const ScheduleSpec& spec, int rank);

}  // namespace cadre
