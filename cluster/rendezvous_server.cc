#include "cluster/rendezvous_server.h"

#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "cluster/rendezvous_service.h"

namespace cadre {
namespace {

constexpr int kMaxRequestBytes = (1 << 20) + (64 << 10);
// How long answers under way may take when the server ends.
constexpr std::chrono::seconds kDrain{1};
// How long a connection may take to say what it is: each one holds a descriptor.
constexpr int kHandshakeMilliseconds = 10'000;

// gRPC says in its own log alone why it could not listen; this says it to the user.
absl::Status CheckListens(const RendezvousServerOptions& options) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  const std::string port = std::to_string(options.port);
  if (const int error = getaddrinfo(options.host.c_str(), port.c_str(), &hints, &found)) {
    return InvalidArgument("rendezvous host {}: {}", options.host, gai_strerror(error));
  }
  const int file = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int yes = 1;
  setsockopt(file, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  int error = file < 0 ? errno : 0;
  if (error == 0 && bind(file, found->ai_addr, found->ai_addrlen) != 0) error = errno;
  if (error == 0 && listen(file, 1) != 0) error = errno;
  if (file >= 0) close(file);
  freeaddrinfo(found);
  if (error == 0) return absl::OkStatus();
  const std::string endpoint = EndpointOf(options.host, options.port);
  if (error == EADDRINUSE) {
    return absl::AlreadyExistsError(
        fmt::format("rendezvous {}: the port is in use; choose another one", endpoint));
  }
  if (error == EADDRNOTAVAIL) {
    return InvalidArgument("rendezvous {}: this machine does not have that address", endpoint);
  }
  return Unavailable("rendezvous {}: cannot listen: {}", endpoint, std::strerror(error));
}

}  // namespace

struct RendezvousServer::Parts {
  explicit Parts(const RendezvousServerOptions& options) : service(options) {}
  RendezvousService service;
  std::unique_ptr<grpc::Server> server;
};

RendezvousServer::RendezvousServer() = default;

absl::StatusOr<std::unique_ptr<RendezvousServer>> RendezvousServer::Start(
    const RendezvousServerOptions& options) {
  if (options.ranks < 0 || options.ranks > Gathering::kMaxMembers) {
    return InvalidArgument("{} ranks: 1 to {} are allowed", options.ranks, Gathering::kMaxMembers);
  }
  if (options.nodes.max_nodes < 0 || options.nodes.max_nodes > Gathering::kMaxMembers) {
    return InvalidArgument("{} nodes: 1 to {} are allowed", options.nodes.max_nodes,
                           Gathering::kMaxMembers);
  }
  CADRE_RETURN_IF_ERROR(CheckListens(options));
  // Never undone: where a socket was full lately gRPC polls it for up to 10 s, and its own end,
  // which comes with its last object, would wait for that.
  grpc_init();
  std::unique_ptr<RendezvousServer> server(new RendezvousServer);
  server->parts_ = std::make_unique<Parts>(options);
  grpc::ServerBuilder builder;
  builder.AddListeningPort(EndpointOf(options.host, options.port),
                           grpc::InsecureServerCredentials(), &server->port_);
  builder.RegisterService(&server->parts_->service);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  builder.SetMaxSendMessageSize(-1);
  // Two servers on one port would each get some of the ranks.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 64);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMilliseconds);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5'000);
  server->parts_->server = builder.BuildAndStart();
  if (server->parts_->server == nullptr || server->port_ <= 0) {
    return absl::AlreadyExistsError(fmt::format("rendezvous {}: cannot listen; is the port in use?",
                                                EndpointOf(options.host, options.port)));
  }
  return server;
}

RendezvousServer::~RendezvousServer() {
  if (parts_->server == nullptr) return;
  parts_->service.Close();
  parts_->server->Shutdown(std::chrono::system_clock::now() + kDrain);
}

}  // namespace cadre
