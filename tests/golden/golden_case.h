// A golden fixture run through Cadre: how far logits, loss, gradients and expert choices lie from
// what transformers computed. See README.md for the fixtures.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/context.h"
#include "core/dtype.h"
#include "core/status.h"
#include "proto/model_config.pb.h"

namespace cadre::golden {

inline const char kFixtures[] = "tests/golden/fixtures/";

struct GoldenErrors {
  double logits = 0.0;     // largest difference over the largest value, worst sequence
  double loss = 0.0;       // relative
  double gradients = 0.0;  // as logits, worst parameter
  std::string worst_gradient;
  int gradients_compared = 0;
  int differing_choices = 0;  // rows of expert ids
  int choices_compared = 0;
};

struct GoldenRun {
  std::string name;  // of the fixture
  DType dtype = DType::kF32;
  int threads = 1;
  bool backward = true;
  // Changes that must show: to the config before the model is built, to one parameter's weights.
  std::function<void(config::ModelConfig&)> change_config;
  std::string scaled_parameter;
};

absl::StatusOr<GoldenErrors> RunGolden(const GoldenRun& run);

// The gradient of one Hugging Face tensor, as stored, from those of ctx.parameters that it fills.
std::vector<double> StoredGradient(Context& ctx, const std::string& tensor);

// Names of a fixture's parameters as the model registers them.
absl::StatusOr<std::vector<std::string>> ParameterNames(const std::string& fixture);

}  // namespace cadre::golden
