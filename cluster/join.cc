#include "cluster/join.h"

namespace cadre {

absl::StatusOr<Membership> JoinJob(const RankEnvironment& environment,
                                   std::chrono::milliseconds timeout) {
  Membership membership;
  const bool local = IsLoopback(environment.master_address);
  if (environment.token.empty() && !local) {
    return InvalidArgument(
        "MASTER_ADDR {}: set CADRE_JOB_TOKEN to one secret for all ranks, so that no stranger "
        "joins",
        environment.master_address);
  }
  if (environment.rank == 0 && !environment.rendezvous_hosted) {
    CADRE_ASSIGN_OR_RETURN(
        membership.server,
        RendezvousServer::Start({.host = local ? environment.master_address : "0.0.0.0",
                                 .port = environment.master_port,
                                 .token = environment.token,
                                 .generation = environment.generation,
                                 .ranks = environment.world_size}));
  }
  CADRE_ASSIGN_OR_RETURN(membership.bootstrap,
                         RendezvousBootstrap::Connect({.host = environment.master_address,
                                                       .port = environment.master_port,
                                                       .token = environment.token,
                                                       .generation = environment.generation,
                                                       .rank = environment.rank,
                                                       .size = environment.world_size,
                                                       .timeout = timeout}));
  CADRE_ASSIGN_OR_RETURN(membership.recorder,
                         FlightRecorder::Create(environment.flight_record, environment.rank));
  return membership;
}

}  // namespace cadre
