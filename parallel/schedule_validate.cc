#include "parallel/schedule_validate.h"

#include <deque>
#include <map>
#include <utility>

namespace cadre {
namespace {

enum Mark : uint8_t {
  kForwardDone = 1,
  kActivationHere = 2,  // the input, from another rank
  kGradientHere = 4,    // of the output, from another rank
  kInputDone = 8,
  kWeightDone = 16,
  kActivationSent = 32,
  kGradientSent = 64,
  kRecomputed = 128,
};

struct StageState {
  int weights_done = 0;
  bool reduced = false;
  bool unsharded = false;
};

struct RankState {
  size_t next = 0;
  int in_flight = 0;
  bool optimizer_done = false;
};

enum class Outcome { kDone, kWaits };

class Walk {
 public:
  explicit Walk(const Schedule& schedule)
      : schedule_(schedule),
        spec_(schedule.spec),
        marks_(size_t(spec_.stages()) * spec_.microbatches),
        stages_(spec_.stages()),
        ranks_(spec_.ranks) {}

  absl::Status Run() {
    bool moved = true;
    while (moved) {
      moved = false;
      for (rank_ = 0; rank_ < spec_.ranks; ++rank_) {
        CADRE_RETURN_IF_ERROR(RunRank(&moved));
      }
    }
    for (rank_ = 0; rank_ < spec_.ranks; ++rank_) {
      if (ranks_[rank_].next < schedule_.ranks[rank_].size()) return Wrong("waits for ever");
    }
    return CheckComplete();
  }

 private:
  const Action& Now() const { return schedule_.ranks[rank_][ranks_[rank_].next]; }

  absl::Status Wrong(const std::string& what) const {
    return InvalidArgument("rank {}, action {} ({}): {}", rank_, ranks_[rank_].next,
                           ToString(Now()), what);
  }

  uint8_t& Marks(int stage, int microbatch) {
    return marks_[size_t(stage) * spec_.microbatches + microbatch];
  }

  // Sets a mark that must not be set.
  absl::Status Once(int stage, int microbatch, Mark mark) {
    uint8_t& marks = Marks(stage, microbatch);
    if (marks & mark) return Wrong("was done before");
    marks |= mark;
    return absl::OkStatus();
  }

  absl::Status RunRank(bool* moved) {
    while (ranks_[rank_].next < schedule_.ranks[rank_].size()) {
      CADRE_RETURN_IF_ERROR(CheckFields(Now()));
      CADRE_ASSIGN_OR_RETURN(const Outcome outcome, Step(Now()));
      if (outcome == Outcome::kWaits) return absl::OkStatus();
      ++ranks_[rank_].next;
      *moved = true;
    }
    return absl::OkStatus();
  }

  // Stage on this rank, microbatch and peer within their ranges.
  absl::Status CheckFields(const Action& a) const {
    if (ranks_[rank_].optimizer_done) return Wrong("comes after the optimizer");
    if (a.kind == ActionKind::kOptimizer) return absl::OkStatus();
    CADRE_RETURN_IF_ERROR(CheckStage(a.stage));
    if (a.kind == ActionKind::kUnshard || a.kind == ActionKind::kReshard ||
        a.kind == ActionKind::kReduceGradient) {
      return absl::OkStatus();
    }
    CADRE_RETURN_IF_ERROR(CheckMicrobatch(a.microbatch));
    if (a.kind != ActionKind::kOverlappedPair) return absl::OkStatus();
    CADRE_RETURN_IF_ERROR(CheckStage(a.backward_stage));
    return CheckMicrobatch(a.backward_microbatch);
  }

  absl::Status CheckStage(int stage) const {
    if (stage >= 0 && stage < spec_.stages() && RankOfStage(spec_, stage) == rank_) {
      return absl::OkStatus();
    }
    return Wrong("no stage of this rank");
  }

  absl::Status CheckMicrobatch(int microbatch) const {
    if (microbatch >= 0 && microbatch < spec_.microbatches) return absl::OkStatus();
    return Wrong("no such microbatch");
  }

  absl::StatusOr<Outcome> Step(const Action& a) {
    switch (a.kind) {
      case ActionKind::kForward:
        return Done(Forward(a.stage, a.microbatch));
      case ActionKind::kBackward:
        return Done(Backward(a.stage, a.microbatch));
      case ActionKind::kBackwardInput:
        return Done(BackwardInput(a.stage, a.microbatch));
      case ActionKind::kBackwardWeight:
        return Done(BackwardWeight(a.stage, a.microbatch));
      case ActionKind::kOverlappedPair:
        return Done(OverlappedPair(a));
      case ActionKind::kSendActivation:
      case ActionKind::kSendGradient:
        return Done(Send(a));
      case ActionKind::kReceiveActivation:
      case ActionKind::kReceiveGradient:
        return Receive(a);
      case ActionKind::kUnshard:
      case ActionKind::kReshard:
        return Done(Shard(a));
      case ActionKind::kRecompute:
        return Done(Recompute(a));
      case ActionKind::kReduceGradient:
        return Done(Reduce(a.stage));
      case ActionKind::kOptimizer:
        ranks_[rank_].optimizer_done = true;
        return Done(CheckReduced());
    }
    __builtin_unreachable();
  }

  static absl::StatusOr<Outcome> Done(const absl::Status& status) {
    if (!status.ok()) return status;
    return Outcome::kDone;
  }

  // Whether what stage `from` computed for `stage` is on this rank.
  bool Here(int stage, int from, int microbatch, Mark computed, Mark received) {
    if (from < 0 || from >= spec_.stages()) return true;
    if (RankOfStage(spec_, from) == rank_) return Marks(from, microbatch) & computed;
    return Marks(stage, microbatch) & received;
  }

  absl::Status CheckWeights(int stage) const {
    if (spec_.unshard && !stages_[stage].unsharded) return Wrong("the stage is not unsharded");
    return absl::OkStatus();
  }

  absl::Status Forward(int stage, int microbatch) {
    CADRE_RETURN_IF_ERROR(CheckWeights(stage));
    if (!Here(stage, stage - 1, microbatch, kForwardDone, kActivationHere)) {
      return Wrong("its activation is not here");
    }
    CADRE_RETURN_IF_ERROR(Once(stage, microbatch, kForwardDone));
    const int most = MostInFlight(spec_, rank_);
    if (++ranks_[rank_].in_flight > most) {
      return Wrong(
          fmt::format("more than the {} forwards in flight that the schedule promises", most));
    }
    return absl::OkStatus();
  }

  absl::Status BackwardInput(int stage, int microbatch) {
    CADRE_RETURN_IF_ERROR(CheckWeights(stage));
    if (!(Marks(stage, microbatch) & kForwardDone)) return Wrong("its forward is not done");
    if (spec_.recompute && !(Marks(stage, microbatch) & kRecomputed)) {
      return Wrong("its activations are not recomputed");
    }
    if (!Here(stage, stage + 1, microbatch, kInputDone, kGradientHere)) {
      return Wrong("its gradient is not here");
    }
    return Once(stage, microbatch, kInputDone);
  }

  absl::Status BackwardWeight(int stage, int microbatch) {
    if (!(Marks(stage, microbatch) & kInputDone)) return Wrong("its backward_input is not done");
    CADRE_RETURN_IF_ERROR(Once(stage, microbatch, kWeightDone));
    if (stages_[stage].weights_done++ != microbatch) {
      return Wrong("weight gradients do not rise with the microbatches");
    }
    --ranks_[rank_].in_flight;
    return absl::OkStatus();
  }

  absl::Status Backward(int stage, int microbatch) {
    CADRE_RETURN_IF_ERROR(BackwardInput(stage, microbatch));
    return BackwardWeight(stage, microbatch);
  }

  // The two run at once: the backward needs a forward before, and both are in flight.
  absl::Status OverlappedPair(const Action& a) {
    CADRE_RETURN_IF_ERROR(Backward(a.backward_stage, a.backward_microbatch));
    ++ranks_[rank_].in_flight;
    CADRE_RETURN_IF_ERROR(Forward(a.stage, a.microbatch));
    --ranks_[rank_].in_flight;
    return absl::OkStatus();
  }

  absl::Status Recompute(const Action& a) {
    if (!(Marks(a.stage, a.microbatch) & kForwardDone)) return Wrong("its forward is not done");
    CADRE_RETURN_IF_ERROR(CheckWeights(a.stage));
    return Once(a.stage, a.microbatch, kRecomputed);
  }

  absl::Status Shard(const Action& a) {
    bool& unsharded = stages_[a.stage].unsharded;
    if (unsharded == (a.kind == ActionKind::kUnshard)) return Wrong("it is so already");
    unsharded = !unsharded;
    return absl::OkStatus();
  }

  absl::Status Reduce(int stage) {
    if (stages_[stage].weights_done != spec_.microbatches) {
      return Wrong("gradients are still to come");
    }
    if (stages_[stage].reduced) return Wrong("was done before");
    stages_[stage].reduced = true;
    return absl::OkStatus();
  }

  absl::Status CheckReduced() const {
    for (int stage = 0; stage < spec_.stages(); ++stage) {
      if (RankOfStage(spec_, stage) == rank_ && !stages_[stage].reduced) {
        return Wrong(fmt::format("the gradients of stage {} are not reduced", stage));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Send(const Action& a) {
    const bool forward = a.kind == ActionKind::kSendActivation;
    if (!(Marks(a.stage, a.microbatch) & (forward ? kForwardDone : kInputDone))) {
      return Wrong("is not computed yet");
    }
    const int to = a.stage + (forward ? 1 : -1);
    if (to < 0 || to >= spec_.stages() || RankOfStage(spec_, to) != a.peer || a.peer == rank_) {
      return Wrong("the peer does not hold the stage that takes it");
    }
    channels_[{rank_, a.peer}].push_back(a);
    return Once(a.stage, a.microbatch, forward ? kActivationSent : kGradientSent);
  }

  absl::StatusOr<Outcome> Receive(const Action& a) {
    const bool forward = a.kind == ActionKind::kReceiveActivation;
    std::deque<Action>& channel = channels_[{a.peer, rank_}];
    if (channel.empty()) return Outcome::kWaits;
    const Action& sent = channel.front();
    const bool same = forward == (sent.kind == ActionKind::kSendActivation) &&
                      sent.stage == a.stage - (forward ? 1 : -1) && sent.microbatch == a.microbatch;
    if (!same) return Wrong(fmt::format("the next message is {}", ToString(sent)));
    channel.pop_front();
    return Done(Once(a.stage, a.microbatch, forward ? kActivationHere : kGradientHere));
  }

  absl::Status CheckComplete() {
    for (int rank = 0; rank < spec_.ranks; ++rank) {
      if (!ranks_[rank].optimizer_done) return InvalidArgument("rank {}: no optimizer", rank);
    }
    for (const auto& [ends, channel] : channels_) {
      if (channel.empty()) continue;
      return InvalidArgument("rank {}: {} is never received", ends.first,
                             ToString(channel.front()));
    }
    return absl::OkStatus();
  }

  const Schedule& schedule_;
  const ScheduleSpec& spec_;
  std::vector<uint8_t> marks_;  // by stage and microbatch
  std::vector<StageState> stages_;
  std::vector<RankState> ranks_;
  std::map<std::pair<int, int>, std::deque<Action>> channels_;  // by sender and receiver
  int rank_ = 0;
};

}  // namespace

absl::Status ValidateSchedule(const Schedule& schedule) {
  CADRE_RETURN_IF_ERROR(CheckStages(schedule.spec));
  CADRE_RETURN_IF_ERROR(CheckMicrobatches(schedule.spec));
  if (static_cast<int64_t>(schedule.ranks.size()) != schedule.spec.ranks) {
    return InvalidArgument("{} vectors of actions for {} ranks", schedule.ranks.size(),
                           schedule.spec.ranks);
  }
  return Walk(schedule).Run();
}

}  // namespace cadre
