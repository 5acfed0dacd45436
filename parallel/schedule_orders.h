// The generators: the computations of a rank in order, without what schedule_passes.h adds. Private
// to parallel/schedule*.cc; each file says where its schedule is from.
#pragma once

#include "parallel/schedule.h"

namespace cadre {

std::vector<Action> GPipeOrder(const ScheduleSpec& spec, int rank);
std::vector<Action> OneForwardOneBackwardOrder(const ScheduleSpec& spec, int rank);
std::vector<Action> InterleavedOrder(const ScheduleSpec& spec, int rank);
std::vector<Action> ZeroBubbleH1Order(const ScheduleSpec& spec, int rank);
std::vector<Action> ZeroBubbleVOrder(const ScheduleSpec& spec, int rank);

// A computation on one stage's microbatch.
inline Action Compute(ActionKind kind, int stage, int microbatch) {
  return {.kind = kind, .stage = static_cast<int16_t>(stage), .microbatch = microbatch};
}

// Appends computations of one stage, each kind with the microbatch that it has come to.
class StageOrder {
 public:
  StageOrder(std::vector<Action>* order, int stage) : order_(order), stage_(stage) {}

  void Forward() { Add(ActionKind::kForward, &forwards_); }
  void Backward() { Add(ActionKind::kBackward, &backwards_); }
  void BackwardInput() { Add(ActionKind::kBackwardInput, &backwards_); }
  void BackwardWeight() { Add(ActionKind::kBackwardWeight, &weights_); }

  int forwards() const { return forwards_; }
  int backwards() const { return backwards_; }
  int weights() const { return weights_; }

 private:
  void Add(ActionKind kind, int* count) { order_->push_back(Compute(kind, stage_, (*count)++)); }

  std::vector<Action>* order_;
  int stage_;
  int forwards_ = 0;
  int backwards_ = 0;
  int weights_ = 0;
};

}  // namespace cadre
