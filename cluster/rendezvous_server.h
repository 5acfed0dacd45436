// RendezvousServer: where the ranks of a job, and its launchers, find one another. It lives in the
// launcher of node 0, or in rank 0 where another launcher started the ranks. Peers are hostile: see
// cluster/gathering.h for its bounds, and nothing is kept of a call with another token.
//
//   CADRE_ASSIGN_OR_RETURN(auto server, RendezvousServer::Start({.token = token, .ranks = 8}));
//   server->port()
//
// It has threads of its own. Destroying it ends calls that wait with kUnavailable.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "cluster/node_rounds.h"
#include "core/status.h"

namespace cadre {

constexpr int kDefaultRendezvousPort = 29500;

struct RendezvousServerOptions {
  std::string host = "127.0.0.1";  // address to listen on
  int port = 0;                    // 0: one that is free
  std::string token;               // what every caller has to know; empty: nothing
  int64_t generation = 0;
  int ranks = 0;                 // how many; 0: the launchers agree on it
  NodeRounds::Options nodes{0};  // launchers; 0: none of ours
  int64_t max_restarts = 0;      // by launchers
};

class RendezvousServer {
 public:
  // kAlreadyExists: the port is in use; kInvalidArgument; kUnavailable. One line each.
  static absl::StatusOr<std::unique_ptr<RendezvousServer>> Start(
      const RendezvousServerOptions& options);
  ~RendezvousServer();
  RendezvousServer(const RendezvousServer&) = delete;
  RendezvousServer& operator=(const RendezvousServer&) = delete;

  int port() const { return port_; }

 private:
  struct Parts;
  RendezvousServer();
  std::unique_ptr<Parts> parts_;
  int port_ = 0;
};

// "host:port", an IPv6 address in brackets.
std::string EndpointOf(const std::string& host, int port);
// Its opposite; without a port, kDefaultRendezvousPort. `name` is what holds it, for errors.
struct HostPort {
  std::string host;
  int port = kDefaultRendezvousPort;
};
absl::StatusOr<HostPort> ParseEndpoint(const std::string& name, const std::string& text);
// Whether a host is this machine and no other can reach it: 127.x.x.x, ::1, localhost.
bool IsLoopback(const std::string& host);

}  // namespace cadre
