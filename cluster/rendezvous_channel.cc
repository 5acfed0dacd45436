#include "cluster/rendezvous_channel.h"

#include <netdb.h>

#include <random>

#include "cluster/gathering.h"
#include "cluster/grpc_status.h"
#include "cluster/rendezvous_server.h"

namespace cadre {
namespace {

// Empty where the name is known here.
std::string WhyUnknown(const std::string& host) {
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), nullptr, nullptr, &found);
  if (error != 0) return fmt::format(": '{}': {}", host, gai_strerror(error));
  freeaddrinfo(found);
  return "";
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectRendezvous(const RendezvousPeer& peer) {
  grpc::ChannelArguments arguments;
  // Names and framing of 65,536 values.
  constexpr int kMaxReplyBytes = static_cast<int>(Gathering::kMaxGatherBytes) + (1 << 20);
  arguments.SetMaxReceiveMessageSize(kMaxReplyBytes);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1'000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  const std::string endpoint = EndpointOf(peer.host, peer.port);
  auto channel = grpc::CreateCustomChannel(endpoint, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + peer.timeout)) {
    return absl::DeadlineExceededError(
        fmt::format("rendezvous: nobody answers at {} after {:g} s{}", endpoint,
                    static_cast<double>(peer.timeout.count()) / 1000, WhyUnknown(peer.host)));
  }
  return channel;
}

rendezvous::Caller MakeCaller(const RendezvousPeer& peer) {
  rendezvous::Caller caller;
  caller.set_token(peer.token);
  caller.set_generation(peer.generation);
  caller.set_number(peer.number);
  caller.set_size(peer.size);
  std::random_device random;
  caller.set_claim((uint64_t{random()} << 32) | random());
  return caller;
}

absl::Status CallError(const RendezvousPeer& peer, const grpc::Status& status) {
  const std::string endpoint = EndpointOf(peer.host, peer.port);
  const bool broken = status.error_code() == grpc::StatusCode::UNAVAILABLE ||
                      status.error_code() == grpc::StatusCode::CANCELLED;
  if (broken && status.error_details() != kServiceSays) {
    return Unavailable("rendezvous {}: it is gone", endpoint);
  }
  return Annotate(FromGrpc(status), "rendezvous " + endpoint);
}

std::chrono::system_clock::time_point CallDeadline(const RendezvousPeer& peer) {
  constexpr std::chrono::seconds kGrace{10};
  return std::chrono::system_clock::now() + peer.timeout + kGrace;
}

}  // namespace cadre
