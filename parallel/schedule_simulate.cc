#include "parallel/schedule_simulate.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <utility>

#include "core/counted.h"
#include "parallel/schedule_validate.h"

namespace cadre {
namespace {

absl::Status CheckDurations(const ActionDurations& d, int stages) {
  const auto time = [](double value) { return std::isfinite(value) && value >= 0; };
  const double all[] = {d.forward, d.backward_input,  d.backward_weight, d.communication,
                        d.unshard, d.reduce_gradient, d.optimizer};
  if (!std::all_of(std::begin(all), std::end(all), time) || d.forward == 0) {
    return InvalidArgument("durations: a forward takes more than 0, nothing less than 0");
  }
  if (!d.stage_cost.empty() && static_cast<int64_t>(d.stage_cost.size()) != stages) {
    return InvalidArgument("durations: costs of {}, but there are {}",
                           Counted(static_cast<int64_t>(d.stage_cost.size()), "stage"), stages);
  }
  if (!std::all_of(d.stage_cost.begin(), d.stage_cost.end(), time)) {
    return InvalidArgument("durations: a stage's cost is negative or not finite");
  }
  return absl::OkStatus();
}

bool IsReceive(ActionKind kind) {
  return kind == ActionKind::kReceiveActivation || kind == ActionKind::kReceiveGradient;
}

class Simulator {
 public:
  Simulator(const Schedule& schedule, const ActionDurations& durations)
      : schedule_(schedule), spec_(schedule.spec), durations_(durations), clocks_(spec_.ranks) {
    result_.ranks.resize(spec_.ranks);
  }

  Simulation Run() {
    bool moved = true;
    while (moved) {
      moved = false;
      for (int rank = 0; rank < spec_.ranks; ++rank) moved |= RunRank(rank);
    }
    for (int rank = 0; rank < spec_.ranks; ++rank) {
      result_.makespan = std::max(result_.makespan, clocks_[rank].now);
      result_.ideal += result_.ranks[rank].busy / spec_.ranks;
      const Clock& clock = clocks_[rank];
      result_.ranks[rank].idle_inside = clock.last - clock.first - result_.ranks[rank].busy;
      result_.ranks[rank].peak_activations = double(clock.most_in_flight) / spec_.stages_per_rank;
    }
    return std::move(result_);
  }

 private:
  struct Clock {
    double now = 0;
    double first = -1, last = 0;  // computation
    int in_flight = 0, most_in_flight = 0;
  };

  // As far as messages let it; whether it moved.
  bool RunRank(int rank) {
    const std::vector<Action>& actions = schedule_.ranks[rank];
    std::vector<Span>& spans = result_.ranks[rank].spans;
    const size_t before = spans.size();
    while (spans.size() < actions.size()) {
      const Action& action = actions[spans.size()];
      Clock& clock = clocks_[rank];
      const double start = clock.now;
      if (IsReceive(action.kind)) {
        std::deque<double>& arrivals = arrivals_[{action.peer, rank}];
        if (arrivals.empty()) break;
        clock.now = std::max(clock.now, arrivals.front());
        arrivals.pop_front();
      } else {
        Compute(rank, action);
      }
      spans.push_back({start, clock.now});
    }
    return spans.size() > before;
  }

  void Compute(int rank, const Action& action) {
    if (action.kind == ActionKind::kSendActivation || action.kind == ActionKind::kSendGradient) {
      arrivals_[{rank, action.peer}].push_back(clocks_[rank].now + durations_.communication);
      return;
    }
    Count(action.kind, &clocks_[rank]);
    const double duration = Duration(action);
    if (duration == 0) return;
    Clock& clock = clocks_[rank];
    if (clock.first < 0) clock.first = clock.now;
    clock.now += duration;
    clock.last = clock.now;
    result_.ranks[rank].busy += duration;
  }

  static void Count(ActionKind kind, Clock* clock) {
    if (kind == ActionKind::kForward || kind == ActionKind::kOverlappedPair) ++clock->in_flight;
    clock->most_in_flight = std::max(clock->most_in_flight, clock->in_flight);
    if (kind == ActionKind::kBackward || kind == ActionKind::kBackwardWeight ||
        kind == ActionKind::kOverlappedPair) {
      --clock->in_flight;
    }
  }

  double Cost(int stage) const {
    const double share = durations_.stage_cost.empty() ? 1.0 : durations_.stage_cost[stage];
    return share / spec_.stages_per_rank;
  }

  double Duration(const Action& a) const {
    const ActionDurations& d = durations_;
    switch (a.kind) {
      case ActionKind::kForward:
      case ActionKind::kRecompute:
        return d.forward * Cost(a.stage);
      case ActionKind::kBackward:
        return (d.backward_input + d.backward_weight) * Cost(a.stage);
      case ActionKind::kBackwardInput:
        return d.backward_input * Cost(a.stage);
      case ActionKind::kBackwardWeight:
        return d.backward_weight * Cost(a.stage);
      case ActionKind::kOverlappedPair:
        return d.forward * Cost(a.stage) +
               (d.backward_input + d.backward_weight) * Cost(a.backward_stage);
      case ActionKind::kUnshard:
        return d.unshard * Cost(a.stage);
      case ActionKind::kReduceGradient:
        return d.reduce_gradient * Cost(a.stage);
      case ActionKind::kOptimizer:
        return d.optimizer;
      default:
        return 0;
    }
  }

  const Schedule& schedule_;
  const ScheduleSpec& spec_;
  const ActionDurations& durations_;
  std::vector<Clock> clocks_;
  std::map<std::pair<int, int>, std::deque<double>> arrivals_;  // by sender and receiver
  Simulation result_;
};

}  // namespace

absl::StatusOr<Simulation> SimulateSchedule(const Schedule& schedule,
                                            const ActionDurations& durations) {
  CADRE_RETURN_IF_ERROR(ValidateSchedule(schedule));
  CADRE_RETURN_IF_ERROR(CheckDurations(durations, schedule.spec.stages()));
  return Simulator(schedule, durations).Run();
}

}  // namespace cadre
