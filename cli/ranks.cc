#include "cli/ranks.h"

#include <spdlog/spdlog.h>
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/environment.h"
#include "core/file.h"
#include "core/wait_notice.h"
#include "proto/parallel_config.pb.h"

namespace cadre::cli {
namespace {

// How long ranks wait for one another at the start.
constexpr std::chrono::minutes kJoinTimeout(5);
// And until they say so.
constexpr std::chrono::seconds kPatience(10);

std::string Hash(std::string_view bytes) {
  return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size()));
}

// Read in pieces: a mapping of the whole program would be the most that a small run ever holds.
absl::StatusOr<std::string> HashOfProgram() {
  CADRE_ASSIGN_OR_RETURN(const FileReader program, FileReader::Open("/proc/self/exe"));
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  XXH3_64bits_reset(state.get());
  std::vector<std::byte> piece(size_t{1} << 20);
  for (int64_t at = 0; at < program.size(); at += static_cast<int64_t>(piece.size())) {
    piece.resize(std::min<size_t>(piece.size(), static_cast<size_t>(program.size() - at)));
    CADRE_RETURN_IF_ERROR(program.ReadAt(at, piece));
    XXH3_64bits_update(state.get(), piece.data(), piece.size());
  }
  return fmt::format("{:016x}", XXH3_64bits_digest(state.get()));
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
  return Unimplemented(
      "comm.transport: nccl moves tensors between GPUs, and ranks compute on the CPU so far; "
      "allowed are auto, shm and ucx");
}

absl::StatusOr<std::optional<RankEnvironment>> Environment() {
  const std::string host = Variable("JOB_COMPLETION_INDEX") ? HostName() : "";
  return FindRankEnvironment(Variable, host);
}

bool TellsOfPeers(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

std::string WaitText(const RankEnvironment& environment) {
  return fmt::format("rank {} of {} ({}) waits for the others at {}, for up to {} s",
                     environment.rank, environment.world_size, environment.source,
                     EndpointOf(environment.master_address, environment.master_port),
                     std::chrono::seconds(kJoinTimeout).count());
}

absl::Status Connect(const RankEnvironment& environment, WorldOptions options, spdlog::logger& log,
                     Ranks* ranks) {
  std::optional<WaitNotice> notice;
  if (environment.local_rank == 0) {
    notice.emplace(kPatience, [&, text = WaitText(environment)] { log.info("{}", text); });
  }
  CADRE_ASSIGN_OR_RETURN(ranks->membership, JoinJob(environment, kJoinTimeout));
  options.recorder = ranks->membership.recorder.get();
  CADRE_ASSIGN_OR_RETURN(ranks->world, World::Create(*ranks->membership.bootstrap, options));
  return absl::OkStatus();
}

}  // namespace

absl::Status WithPeerLoss(absl::Status status, Ranks* ranks) {
  if (ranks == nullptr || !TellsOfPeers(status)) return status;
  // An output folder that cannot be made is kUnavailable, too.
  if (ranks->world != nullptr && !TellsOfPeers(ranks->world->status())) return status;
  return WithExitCode(std::move(status), kPeerLostExitCode);
}

absl::StatusOr<OwnStart> FindOwnStart() {
  CADRE_ASSIGN_OR_RETURN(const auto environment, Environment());
  if (!environment.has_value()) return OwnStart();
  return OwnStart{.leader = environment->rank == 0, .again = environment->generation > 0};
}

absl::StatusOr<std::unique_ptr<Ranks>> JoinRanks(const config::CommConfig& comm,
                                                 const RankArguments& arguments,
                                                 spdlog::logger& log) {
  CADRE_ASSIGN_OR_RETURN(const TransportKind transport, KindOf(comm.transport()));
  CADRE_ASSIGN_OR_RETURN(const auto environment, Environment());
  if (!environment.has_value() || environment->world_size == 1) return nullptr;
  CADRE_ASSIGN_OR_RETURN(const std::string program, HashOfProgram());
  auto ranks = std::make_unique<Ranks>();
  const absl::Status connected = Connect(
      *environment,
      {.transport = transport,
       .timeout = std::chrono::seconds(comm.timeout_seconds()),
       .must_agree = {{"program", program},
                      {"configuration", Hash(arguments.configuration), arguments.configuration},
                      {"--resume", arguments.resume},
                      {"--trace", arguments.trace ? "one" : "none"}}},
      log, ranks.get());
  CADRE_RETURN_IF_ERROR(WithPeerLoss(connected, ranks.get()));
  return ranks;
}

}  // namespace cadre::cli
