// Slurm's lists of hosts and of tasks by node, expanded without Slurm's tools.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"

namespace cadre {

// "node[1-3,05],login" is node1, node2, node3, node05, login. kInvalidArgument: not such a list, or
// more than 65,536 hosts.
absl::StatusOr<std::vector<std::string>> ExpandHostList(const std::string& list);

// "2(x3),1" is 2, 2, 2, 1: tasks of each node.
absl::StatusOr<std::vector<int>> ExpandTaskCounts(const std::string& list);

}  // namespace cadre
