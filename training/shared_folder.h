// Whether the ranks of a run write into one folder. Called by all of them, on one thread each,
// while nobody else uses the group.
#pragma once

#include <string>

#include "core/status.h"
#include "parallel/communicator.h"

namespace cadre {

// OK where every rank of `group` (null: one process) sees what its first rank writes into `folder`,
// which exists. Otherwise, on every rank: kInvalidArgument that names the first one that does
// not (a disk of its own under the same path), or the first rank's error. Leaves nothing there, and
// removes what ranks that were killed in here left.
absl::Status CheckSharedFolder(Communicator* group, const std::string& folder);

}  // namespace cadre
