// A rank's way into its job, whatever started it.
#pragma once

#include <chrono>
#include <memory>

#include "cluster/rank_environment.h"
#include "cluster/rendezvous_bootstrap.h"
#include "cluster/rendezvous_server.h"
#include "core/status.h"
#include "parallel/flight_recorder.h"

namespace cadre {

struct Membership {
  std::unique_ptr<RendezvousServer> server;  // in rank 0, where no launcher of ours hosts it
  std::unique_ptr<RendezvousBootstrap> bootstrap;
  std::unique_ptr<FlightRecorder> recorder;
};

// Connects to the rendezvous; in rank 0 opens it first where nobody else does. Without a launcher
// of ours that is reachable from this machine alone, or needs a token (kInvalidArgument).
absl::StatusOr<Membership> JoinJob(const RankEnvironment& environment,
                                   std::chrono::milliseconds timeout);

}  // namespace cadre
