#include "cluster/rendezvous_bootstrap.h"

#include <utility>

#include "cluster/gathering.h"
#include "cluster/rendezvous_channel.h"
#include "proto/rendezvous.grpc.pb.h"

namespace cadre {

struct RendezvousBootstrap::Parts {
  RendezvousPeer peer;
  rendezvous::Caller caller;
  std::unique_ptr<rendezvous::Rendezvous::Stub> stub;
};

RendezvousBootstrap::RendezvousBootstrap() : parts_(std::make_unique<Parts>()) {}
RendezvousBootstrap::~RendezvousBootstrap() = default;

int RendezvousBootstrap::rank() const { return parts_->peer.number; }
int RendezvousBootstrap::size() const { return parts_->peer.size; }

absl::StatusOr<std::unique_ptr<RendezvousBootstrap>> RendezvousBootstrap::Connect(
    const RendezvousBootstrapOptions& options) {
  std::unique_ptr<RendezvousBootstrap> bootstrap(new RendezvousBootstrap);
  bootstrap->parts_->peer = {.host = options.host,
                             .port = options.port,
                             .token = options.token,
                             .generation = options.generation,
                             .number = options.rank,
                             .size = options.size,
                             .timeout = options.timeout};
  bootstrap->parts_->caller = MakeCaller(bootstrap->parts_->peer);
  CADRE_ASSIGN_OR_RETURN(auto channel, ConnectRendezvous(bootstrap->parts_->peer));
  bootstrap->parts_->stub = rendezvous::Rendezvous::NewStub(channel);
  return bootstrap;
}

absl::StatusOr<std::vector<std::string>> RendezvousBootstrap::AllGather(std::string_view key,
                                                                        std::string mine) {
  if (mine.size() > Gathering::kMaxValueBytes) {
    return InvalidArgument("rank {}: {}: a value of {} bytes; {} are allowed", rank(), key,
                           mine.size(), Gathering::kMaxValueBytes);
  }
  rendezvous::AllGatherRequest request;
  *request.mutable_caller() = parts_->caller;
  request.set_key(std::string(key));
  request.set_value(std::move(mine));
  request.set_timeout_ms(parts_->peer.timeout.count());
  rendezvous::AllGatherReply reply;
  grpc::ClientContext context;
  context.set_deadline(CallDeadline(parts_->peer));
  const grpc::Status status = parts_->stub->AllGather(&context, request, &reply);
  if (!status.ok()) return CallError(parts_->peer, status);
  if (reply.values_size() != parts_->peer.size) {
    return DataLoss("rendezvous: {} values for {} ranks", reply.values_size(), parts_->peer.size);
  }
  return std::vector<std::string>(std::make_move_iterator(reply.mutable_values()->begin()),
                                  std::make_move_iterator(reply.mutable_values()->end()));
}

}  // namespace cadre
