// One training run under a layout, its ranks as threads: what it lost and what its gradients were.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/status.h"
#include "proto/train_config.pb.h"
#include "tests/faulty_group.h"
#include "tests/routing_log.h"

namespace cadre::testing_run {

struct LayoutRun {
  std::vector<double> losses;                            // by step
  std::map<int64_t, double> evaluations;                 // held-out losses, by steps done
  std::map<std::string, std::vector<double>> gradients;  // of the first step, by stored tensor
  DecoderSpec spec;
  RoutingLog routing;
};

// Every rank must give the same losses, bit for bit, unless there is a fault.
LayoutRun TrainUnder(const config::TrainConfig& config, int world, const std::string& output,
                     const Fault& fault = {});

// What Run returns on the ranks but rank 1, which opens its run and leaves.
std::vector<absl::Status> LoseRankOne(const config::TrainConfig& config, int world,
                                      const std::string& output);

// The largest relative L2 difference over all parameters, and which it was. Here and below no
// number is larger than NaN.
struct Gap {
  double relative = 0;
  std::string parameter;
};
Gap LargestGap(const LayoutRun& expected, const LayoutRun& got);

// The largest relative difference of a step's loss, over the first `steps`.
double LargestLossGap(const LayoutRun& expected, const LayoutRun& got, size_t steps = SIZE_MAX);

// The same of the held-out losses.
double LargestEvaluationGap(const LayoutRun& expected, const LayoutRun& got);

}  // namespace cadre::testing_run
