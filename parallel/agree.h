// What the ranks of a group must know of one another before they go on together. Collective: every
// rank of the group calls, in the same order. Used by the communicator's one thread.
#pragma once

#include <string>
#include <vector>

#include "core/status.h"
#include "parallel/communicator.h"

namespace cadre {

// OK where every rank is; else, on every rank, the first failing rank's status as "rank 3: message"
// (rank of the group). One that all ranks have in the same words comes back as it is: they have
// agreed on it before, or it is nobody's own. So does a failure of the communication itself.
absl::Status Agree(Communicator& group, const absl::Status& mine, const OpLabel& label);
// The same where `group` may be null: one process, its own status.
inline absl::Status AgreeIn(Communicator* group, const absl::Status& mine, const OpLabel& label) {
  return group == nullptr ? mine : Agree(*group, mine, label);
}

// What every rank hands in, by rank. kInvalidArgument on every rank where one hands in more than
// 1 GiB.
absl::StatusOr<std::vector<std::string>> GatherText(Communicator& group, const std::string& mine,
                                                    const OpLabel& label);

}  // namespace cadre
