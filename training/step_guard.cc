#include "training/step_guard.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "core/file.h"

namespace cadre {
namespace {

// Fewer norms than this say little about what is usual.
constexpr size_t kFewestNorms = 8;

double Median(std::vector<double> values) {
  auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

nlohmann::json Number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : (value > 0 ? "inf" : "-inf");
}

}  // namespace

StepVerdict StepGuard::Judge(int64_t step, double loss, double gradient_norm) {
  if (!std::isfinite(loss) || !std::isfinite(gradient_norm)) {
    config::BadStepAction action = config_.on_non_finite();
    // Non-finite gradients would destroy the weights and the moments.
    if (action == config::BAD_STEP_ACTION_KEEP) action = config::BAD_STEP_ACTION_SKIP;
    return Act(action,
               fmt::format("step {}: loss {}, gradient norm {}", step, loss, gradient_norm));
  }
  double median = state_.norms.size() >= kFewestNorms ? Median(state_.norms) : 0.0;
  if (state_.norms.size() == static_cast<size_t>(config_.spike_window())) {
    state_.norms.erase(state_.norms.begin());
  }
  state_.norms.push_back(gradient_norm);
  if (median > 0.0 && gradient_norm > config_.spike_factor() * median) {
    return Act(config_.on_spike(),
               fmt::format("step {}: gradient norm {:.4g} is above {} times the median {:.4g} of "
                           "the last {} steps (loss {:.6g})",
                           step, gradient_norm, config_.spike_factor(), median,
                           state_.norms.size() - 1, loss));
  }
  state_.skipped_in_row = 0;
  return {};
}

StepVerdict StepGuard::Act(config::BadStepAction action, std::string reason) {
  StepVerdict verdict{.bad = true, .reason = std::move(reason)};
  switch (action) {
    case config::BAD_STEP_ACTION_KEEP:
      state_.skipped_in_row = 0;
      return verdict;
    case config::BAD_STEP_ACTION_STOP:
      verdict.action = StepVerdict::Action::kStop;
      return verdict;
    case config::BAD_STEP_ACTION_SKIP:
      break;
  }
  ++state_.skipped_in_row;
  verdict.action = StepVerdict::Action::kSkip;
  if (state_.skipped_in_row >= config_.max_consecutive()) {
    verdict.action = StepVerdict::Action::kStop;
    verdict.reason +=
        fmt::format("; {} bad steps in a row (bad_step.max_consecutive)", state_.skipped_in_row);
  }
  return verdict;
}

void StepGuard::Restore(StepGuardState state) {
  size_t window = static_cast<size_t>(config_.spike_window());
  if (state.norms.size() > window) {
    state.norms.erase(state.norms.begin(), state.norms.end() - static_cast<int64_t>(window));
  }
  state_ = std::move(state);
}

absl::StatusOr<std::string> WriteBadStep(const std::string& folder, const BadStepDump& dump) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return ErrnoError(folder, "create", error.value());
  nlohmann::json json = {{"step", dump.step},
                         {"loss", Number(dump.loss)},
                         {"grad_norm", Number(dump.gradient_norm)},
                         {"reason", dump.reason},
                         {"samples", dump.samples},
                         {"ids", dump.ids},
                         {"targets", dump.targets}};
  std::string path = fmt::format("{}/step-{:06}.json", folder, dump.step);
  CADRE_RETURN_IF_ERROR(WriteFileAtomic(path, json.dump() + "\n"));
  return path;
}

}  // namespace cadre
