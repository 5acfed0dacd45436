// What `cadre train` would run with, for who starts it.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "proto/train_config.pb.h"

namespace cadre::cli {

// Of its arguments, without the verb. kInvalidArgument: an option or a field that cannot be.
absl::StatusOr<config::TrainConfig> TrainConfigOf(std::vector<std::string> arguments);

}  // namespace cadre::cli
