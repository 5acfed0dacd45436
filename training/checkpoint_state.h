// Which tensors a checkpoint keeps; shared by saving and loading.
#pragma once

#include <string_view>
#include <vector>

#include "core/parameters.h"
#include "training/optimizer.h"

namespace cadre {

inline constexpr std::string_view kMasterSlot = "master";

// Whether a run changes the parameter: trainable ones, and fp32 ones outside the optimizer (the
// router's bias correction).
bool Changes(const ParamSpec& spec);
// Whether it changes any parameter of the bucket.
bool BucketChanges(const ParameterStore& store, size_t bucket);

// One tensor per bucket: the optimizer's master where it has one, else the weights themselves.
std::vector<Tensor> PreciseWeights(const ParameterStore& store, const Optimizer& optimizer);

}  // namespace cadre
