// Who a process is among the ranks of a job, and a launcher among its nodes, from what started it:
// `cadre launch`, torchrun, Kubeflow, a Kubernetes indexed job, Open MPI or Slurm. The values are
// handed in, since cli/ alone reads the environment.
//
//   CADRE_ASSIGN_OR_RETURN(auto environment, FindRankEnvironment(lookup, host_name));
//   if (environment) ...   // else: one process
//
// docs/launch.md lists the variables. What contradicts itself or is no number is refused with the
// variable's name: kInvalidArgument.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "cluster/node_range.h"
#include "cluster/rendezvous_server.h"
#include "core/status.h"

namespace cadre {

// The value of a variable; nullopt where it is not set.
using VariableLookup = std::function<std::optional<std::string>(const std::string& name)>;

// What `cadre launch` tells its ranks beside torchrun's variables.
constexpr char kRendezvousVariable[] = "CADRE_RENDEZVOUS";       // HOST:PORT, already listening
constexpr char kGenerationVariable[] = "CADRE_GENERATION";       // starts of the job before this
constexpr char kTokenVariable[] = "CADRE_JOB_TOKEN";             // never on a command line
constexpr char kLauncherVariable[] = "CADRE_LAUNCHER_PID";       // ends its ranks with itself
constexpr char kFlightRecordVariable[] = "CADRE_FLIGHT_RECORD";  // file to record into

// What a rank that a launcher started exits with when it ends because it lost a peer: the launcher
// looks for the one that died first.
constexpr int kPeerLostExitCode = 3;
// And with what it ends where another start would end the same way: wrong usage, and training that
// its bad-step policy or bad data stopped.
constexpr int kUsageExitCode = 2;
constexpr int kTrainingStoppedExitCode = 4;

struct RankEnvironment {
  std::string source;  // "torchrun", "Slurm"
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_world_size = 1;
  int node_rank = 0;
  int64_t restart_count = 0;
  int64_t generation = 0;  // starts before this one; not all are restarts after a failure
  // Of the rendezvous. Where it is not hosted by a launcher, rank 0 hosts it.
  std::string master_address;
  int master_port = kDefaultRendezvousPort;
  bool rendezvous_hosted = false;
  std::string token;
  std::string flight_record;  // empty: none wanted
};

// `host_name`: this machine's, with its domain where there is one.
absl::StatusOr<std::optional<RankEnvironment>> FindRankEnvironment(const VariableLookup& lookup,
                                                                   const std::string& host_name);

// What is said of the node that a launcher runs on; its flags come first.
struct NodeEnvironment {
  std::string source;
  std::optional<NodeRange> nodes;
  std::optional<int> node_rank;
  std::optional<int> processes;  // on this node
  std::optional<HostPort> rendezvous;
};
absl::StatusOr<NodeEnvironment> FindNodeEnvironment(const VariableLookup& lookup,
                                                    const std::string& host_name);

}  // namespace cadre
