// A rank of a server that is not rank 0: runs the steps that rank 0 tells, with its part of the
// model and keys and values of its own under the same block ids.
#pragma once

#include "model/model.h"
#include "serving/engine.h"
#include "serving/serving_ranks.h"

namespace cadre {

// Until rank 0 says stop. The options are rank 0's. OK then; else as Engine::Create, or what ended
// it: kUnavailable where a rank is lost, kDataLoss where rank 0 tells what cannot be.
absl::Status FollowSteps(ModelHome& home, const EngineOptions& options, ServingRanks& ranks);

}  // namespace cadre
