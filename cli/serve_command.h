// What `cadre serve` would run with, for who starts it.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "parallel/layout.h"
#include "proto/serve_config.pb.h"

namespace cadre::cli {

// Of its arguments, without the verb. kInvalidArgument: an option or a field that cannot be.
absl::StatusOr<config::ServeConfig> ServeConfigOf(std::vector<std::string> arguments);

// The configuration's layout over `world` ranks, from the model's config.json alone.
absl::StatusOr<Layout> LayoutOfServer(const config::ServeConfig& config, int world);

}  // namespace cadre::cli
