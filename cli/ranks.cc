#include "cli/ranks.h"

#include <xxhash.h>

#include "cli/environment.h"
#include "core/file.h"
#include "proto/parallel_config.pb.h"

namespace cadre::cli {
namespace {

// How long ranks wait for one another at the start.
constexpr std::chrono::minutes kJoinTimeout(5);

std::string Hash(std::string_view bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

absl::StatusOr<TransportKind> KindOf(config::Transport transport) {
  switch (transport) {
    case config::TRANSPORT_AUTO:
      return TransportKind::kAuto;
    case config::TRANSPORT_SHM:
      return TransportKind::kShm;
    case config::TRANSPORT_UCX:
      return TransportKind::kUcx;
    case config::TRANSPORT_NCCL:
      break;
  }
  return Unimplemented("comm.transport: nccl; ranks on the CPU take auto, shm or ucx");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ranks>> JoinRanks(const config::CommConfig& comm,
                                                 const std::string& configuration) {
  const std::string host = Variable("JOB_COMPLETION_INDEX") ? HostName() : "";
  CADRE_ASSIGN_OR_RETURN(const auto environment, FindRankEnvironment(Variable, host));
  if (!environment.has_value() || environment->world_size == 1) return nullptr;
  CADRE_ASSIGN_OR_RETURN(const TransportKind transport, KindOf(comm.transport()));
  CADRE_ASSIGN_OR_RETURN(const MappedFile program, MappedFile::Open("/proc/self/exe"));
  const std::string_view code(reinterpret_cast<const char*>(program.bytes().data()),
                              program.bytes().size());
  auto ranks = std::make_unique<Ranks>();
  CADRE_ASSIGN_OR_RETURN(ranks->membership, JoinJob(*environment, kJoinTimeout));
  CADRE_ASSIGN_OR_RETURN(ranks->world,
                         World::Create(*ranks->membership.bootstrap,
                                       {.transport = transport,
                                        .timeout = std::chrono::seconds(comm.timeout_seconds()),
                                        .must_agree = {{"program", Hash(code)},
                                                       {"configuration", Hash(configuration)}},
                                        .recorder = ranks->membership.recorder.get()}));
  return ranks;
}

}  // namespace cadre::cli
