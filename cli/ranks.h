// The ranks that a verb runs with: what started this process says which one it is.
#pragma once

#include <memory>
#include <string>

#include "cluster/join.h"
#include "core/status.h"
#include "parallel/world.h"

namespace spdlog {
class logger;
}

namespace cadre::config {
class CommConfig;
}

namespace cadre::cli {

struct Ranks {
  Membership membership;  // the world records into it
  std::unique_ptr<World> world;
};

// What must be the same on all ranks, besides their program.
struct RankArguments {
  std::string configuration;
  std::string resume;
  bool trace = false;
};

// Joins the job and connects to its ranks; null where this process is the only one.
// A rank that does not come is a peer lost, in the status' exit code; `log` is told where
// that takes a while.
absl::StatusOr<std::unique_ptr<Ranks>> JoinRanks(const config::CommConfig& comm,
                                                 const RankArguments& arguments,
                                                 spdlog::logger& log);

// Why a rank ended, with the exit code of one that lost a peer where that is it: `status` is of
// what needed the other ranks, and their world, if it came to be, has failed.
absl::Status WithPeerLoss(absl::Status status, Ranks* ranks);
// Before it joins: whether this is rank 0, or the only one; and whether this job was started
// before, by a launcher after a failure or with other nodes, or by Slurm's requeue.
struct OwnStart {
  bool leader = true;
  bool again = false;
};
absl::StatusOr<OwnStart> FindOwnStart();

}  // namespace cadre::cli
