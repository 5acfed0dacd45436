// RendezvousBootstrap: how the ranks of a job find one another (parallel/bootstrap.h), over a
// RendezvousServer.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "parallel/bootstrap.h"

namespace cadre {

struct RendezvousBootstrapOptions {
  std::string host;
  int port = 0;
  std::string token;
  int64_t generation = 0;
  int rank = 0;
  int size = 1;
  // How long to try to connect, and how long each gathering waits for the others.
  std::chrono::milliseconds timeout{60'000};
};

class RendezvousBootstrap final : public Bootstrap {
 public:
  // kDeadlineExceeded: nobody answers there.
  static absl::StatusOr<std::unique_ptr<RendezvousBootstrap>> Connect(
      const RendezvousBootstrapOptions& options);
  ~RendezvousBootstrap() override;

  int rank() const override;
  int size() const override;
  // Also kAlreadyExists (another process has this rank), kInvalidArgument (the ranks differ in how
  // many they are), kPermissionDenied (another job's), kFailedPrecondition (a start that is over).
  absl::StatusOr<std::vector<std::string>> AllGather(std::string_view key,
                                                     std::string mine) override;

 private:
  struct Parts;
  RendezvousBootstrap();
  std::unique_ptr<Parts> parts_;
};

}  // namespace cadre
