#include "parallel/schedule_passes.h"

#include <map>
#include <utility>

namespace cadre {
namespace {

// Messages from one rank to another in the order in which they are sent: the sends themselves.
struct Channel {
  std::vector<Action> sends;
  size_t received = 0;
};

// The forward and the backward that an action computes; -1 where it has none.
struct Parts {
  int forward_stage = -1, forward_microbatch = -1;
  int backward_stage = -1, backward_microbatch = -1;
  int weight_stage = -1;
};

Parts PartsOf(const Action& a) {
  switch (a.kind) {
    case ActionKind::kForward:
      return {.forward_stage = a.stage, .forward_microbatch = a.microbatch};
    case ActionKind::kBackward:
      return {
          .backward_stage = a.stage, .backward_microbatch = a.microbatch, .weight_stage = a.stage};
    case ActionKind::kBackwardInput:
      return {.backward_stage = a.stage, .backward_microbatch = a.microbatch};
    case ActionKind::kBackwardWeight:
      return {.weight_stage = a.stage};
    case ActionKind::kOverlappedPair:
      return {.forward_stage = a.stage,
              .forward_microbatch = a.microbatch,
              .backward_stage = a.backward_stage,
              .backward_microbatch = a.backward_microbatch,
              .weight_stage = a.backward_stage};
    default:
      CADRE_CHECK(false, "{} is no computation", ToString(a));
  }
}

class TransferPass {
 public:
  TransferPass(const ScheduleSpec& spec, const std::vector<std::vector<Action>>& orders)
      : spec_(spec), orders_(orders), weights_left_(spec.stages(), spec.microbatches) {}

  std::vector<std::vector<Action>> Run() {
    place_.resize(size_t{2} * spec_.stages() * spec_.microbatches);
    for (int rank = 0; rank < spec_.ranks; ++rank) CollectSends(rank);
    std::vector<std::vector<Action>> ranks(spec_.ranks);
    for (int rank = 0; rank < spec_.ranks; ++rank) Write(rank, &ranks[rank]);
    return ranks;
  }

 private:
  // Where in its channel a message stands, by what is sent.
  size_t& Place(ActionKind kind, int stage, int microbatch) {
    const size_t half = kind == ActionKind::kSendGradient ? spec_.stages() : 0;
    return place_[(half + stage) * spec_.microbatches + microbatch];
  }

  // What an action sends: at most an activation and a gradient.
  std::vector<Action> SendsOf(int rank, const Action& action) const {
    const Parts parts = PartsOf(action);
    std::vector<Action> sends;
    const auto add = [&](ActionKind kind, int stage, int microbatch, int to_stage) {
      if (stage < 0 || to_stage < 0 || to_stage >= spec_.stages()) return;
      const int peer = RankOfStage(spec_, to_stage);
      if (peer == rank) return;
      sends.push_back(Compute(kind, stage, microbatch, peer));
    };
    add(ActionKind::kSendActivation, parts.forward_stage, parts.forward_microbatch,
        parts.forward_stage + 1);
    add(ActionKind::kSendGradient, parts.backward_stage, parts.backward_microbatch,
        parts.backward_stage - 1);
    return sends;
  }

  static Action Compute(ActionKind kind, int stage, int microbatch, int peer = -1) {
    return {.kind = kind,
            .peer = static_cast<int16_t>(peer),
            .stage = static_cast<int16_t>(stage),
            .microbatch = microbatch};
  }

  void CollectSends(int rank) {
    for (const Action& action : orders_[rank]) {
      for (const Action& send : SendsOf(rank, action)) {
        std::vector<Action>& sends = channels_[{rank, send.peer}].sends;
        Place(send.kind, send.stage, send.microbatch) = sends.size();
        sends.push_back(send);
      }
    }
  }

  // Receives up to the message that `from_stage` sends, unless it is here or comes from this rank.
  void Receive(int rank, ActionKind send, int from_stage, int microbatch,
               std::vector<Action>* actions) {
    if (from_stage < 0 || from_stage >= spec_.stages()) return;
    const int peer = RankOfStage(spec_, from_stage);
    if (peer == rank) return;
    Channel& channel = channels_[{peer, rank}];
    const size_t place = Place(send, from_stage, microbatch);
    for (; channel.received <= place; ++channel.received) {
      const Action& next = channel.sends[channel.received];
      const bool forward = next.kind == ActionKind::kSendActivation;
      actions->push_back(
          Compute(forward ? ActionKind::kReceiveActivation : ActionKind::kReceiveGradient,
                  next.stage + (forward ? 1 : -1), next.microbatch, peer));
    }
  }

  void Unshard(int stage, int* unsharded, std::vector<Action>* actions) const {
    if (!spec_.unshard || stage == *unsharded) return;
    if (*unsharded >= 0) actions->push_back(Compute(ActionKind::kReshard, *unsharded, -1));
    if (stage >= 0) actions->push_back(Compute(ActionKind::kUnshard, stage, -1));
    *unsharded = stage;
  }

  void Write(int rank, std::vector<Action>* actions) {
    int unsharded = -1;
    for (const Action& action : orders_[rank]) {
      const Parts parts = PartsOf(action);
      Unshard(action.stage, &unsharded, actions);
      Receive(rank, ActionKind::kSendActivation, parts.forward_stage - 1, parts.forward_microbatch,
              actions);
      if (parts.backward_stage >= 0) {
        // Before the gradient is waited for, which it does not need.
        if (spec_.recompute) {
          actions->push_back(
              Compute(ActionKind::kRecompute, parts.backward_stage, parts.backward_microbatch));
        }
        Receive(rank, ActionKind::kSendGradient, parts.backward_stage + 1,
                parts.backward_microbatch, actions);
      }
      actions->push_back(action);
      for (const Action& send : SendsOf(rank, action)) actions->push_back(send);
      if (parts.weight_stage >= 0 && --weights_left_[parts.weight_stage] == 0) {
        actions->push_back(Compute(ActionKind::kReduceGradient, parts.weight_stage, -1));
      }
    }
    Unshard(-1, &unsharded, actions);
    actions->push_back({.kind = ActionKind::kOptimizer});
  }

  const ScheduleSpec& spec_;
  const std::vector<std::vector<Action>>& orders_;
  std::vector<int> weights_left_;  // by stage
  std::vector<size_t> place_;
  std::map<std::pair<int, int>, Channel> channels_;  // by sender and receiver
};

}  // namespace

std::vector<std::vector<Action>> AddTransfers(const ScheduleSpec& spec,
                                              const std::vector<std::vector<Action>>& orders) {
  return TransferPass(spec, orders).Run();
}

}  // namespace cadre
