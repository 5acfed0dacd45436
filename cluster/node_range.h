// How many nodes a job may have: torchrun's --nnodes.
#pragma once

#include <string>

#include "core/status.h"

namespace cadre {

struct NodeRange {
  int min = 1;
  int max = 1;
  bool elastic() const { return min < max; }
};

// "4" or "MIN:MAX". `name` is what holds it, for errors: kInvalidArgument.
absl::StatusOr<NodeRange> ParseNodeRange(const std::string& name, const std::string& text);

}  // namespace cadre
