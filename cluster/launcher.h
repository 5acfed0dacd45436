// The launcher: starts the ranks of a job on this machine as processes, with its fellows on other
// nodes, and sees them through: their output, their deaths, hangs, signals and restarts.
//
//   CADRE_ASSIGN_OR_RETURN(LaunchOutcome outcome, Launch({.arguments = {"cadre", "train", ...},
//                                                         .processes = 4}));
//
// docs/launch.md says what a user sees. Its ranks die with the thread that calls this, which must
// be the program's main one and, while it runs, gets SIGINT, SIGTERM and SIGHUP.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "cluster/node_range.h"
#include "cluster/rendezvous_server.h"
#include "core/status.h"

namespace cadre {

struct LauncherOptions {
  std::string program = "/proc/self/exe";
  std::vector<std::string> arguments;    // of each rank, the program's name first
  std::vector<std::string> environment;  // NAME=value, to which the ranks' own are added
  int processes = 1;                     // on this node
  NodeRange nodes;
  int node_rank = 0;
  HostPort rendezvous;  // node 0 listens there; with one node it is chosen here
  std::string token;    // of the job, needed with several nodes; with one it is drawn here
  std::chrono::milliseconds rendezvous_timeout{60'000};
  std::chrono::milliseconds last_call{30'000};  // for nodes beyond the fewest; node 0's counts
  // Whether the job can be laid over so many ranks: on node 0, which chooses how many nodes a start
  // takes. From any thread; quick. Null: any world will do.
  NodeRounds::CheckWorld check_world;
  std::string log_folder;                    // empty: no logs
  std::string temporary_folder;              // where /dev/shm cannot be written
  int64_t max_restarts = 0;                  // node 0's counts
  std::chrono::nanoseconds hang_timeout{0};  // 0: a hang is reported only
  bool pin_cores = true;  // share the cores out and say how many threads each rank has
};

struct LaunchOutcome {
  int exit_code = 0;  // 0, or of the rank that failed first; 128 + the signal that killed it
  std::string error;  // one line, where it is not 0
};

// kInvalidArgument: an option that cannot be. Launch looks itself; this is for who wants to do
// something before.
absl::Status CheckLauncherOptions(const LauncherOptions& options);

// Errors are of the launch itself: a bad option, a port in use, nodes that do not come.
absl::StatusOr<LaunchOutcome> Launch(const LauncherOptions& options);

}  // namespace cadre
