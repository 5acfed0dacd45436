// A connection to a RendezvousServer. Private to this folder.
#pragma once

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "core/status.h"
#include "proto/rendezvous.pb.h"

namespace cadre {

struct RendezvousPeer {
  std::string host;
  int port = 0;
  std::string token;
  int64_t generation = 0;
  int number = 0;
  int size = 0;
  std::chrono::milliseconds timeout{60'000};
};

// Tries until somebody answers or the time is over: kDeadlineExceeded, "nobody answers at H:P".
absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectRendezvous(const RendezvousPeer& peer);

// With a claim of its own.
rendezvous::Caller MakeCaller(const RendezvousPeer& peer);

// What a failed call says, with where; kUnavailable: the rendezvous is gone.
absl::Status CallError(const RendezvousPeer& peer, const grpc::Status& status);

// When a call that the server itself ends after the peer's time-out is given up.
std::chrono::system_clock::time_point CallDeadline(const RendezvousPeer& peer);

}  // namespace cadre
