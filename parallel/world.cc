#include "parallel/world.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/host_allocator.h"
#include "core/yaml_difference.h"
#include "parallel/cpu_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/rank_list.h"
#include "parallel/shm_transport.h"

namespace cadre {
namespace {

// Equal for processes that can open one another's descriptors through /proc.
std::string HostIdentity() {
  auto boot = ReadFile("/proc/sys/kernel/random/boot_id", 1 << 10);
  struct stat processes = {};
  if (!boot.ok() || stat("/proc/self/ns/pid", &processes) != 0) {
    return fmt::format("process {}", getpid());
  }
  boot->erase(std::remove(boot->begin(), boot->end(), '\n'), boot->end());
  return fmt::format("{} {} {}", *boot, processes.st_ino, getuid());
}

const std::string& NameOf(const std::pair<std::string, std::string>& thing) { return thing.first; }

using RanksByValue = std::map<std::string, std::vector<int>>;

// "rank 2 has a, ranks 0, 1, 3 have b": the fewest first.
std::string WhoHasWhat(const RanksByValue& ranks) {
  constexpr size_t kShown = 4;
  std::vector<std::pair<std::string, std::vector<int>>> groups(ranks.begin(), ranks.end());
  std::ranges::sort(groups, {}, [](const auto& group) {
    return std::pair(group.second.size(), -group.second.front());
  });
  std::string text;
  for (size_t i = 0; i < std::min(kShown, groups.size()); ++i) {
    const auto& [what, who] = groups[i];
    text += fmt::format("{}{} {} {}", i == 0 ? "" : ", ", RankList("rank", who),
                        who.size() == 1 ? "has" : "have", what);
  }
  if (groups.size() > kShown) text += fmt::format(" and so on, {} in all", groups.size());
  return text;
}

// "seed is 7 on rank 2, 0 on ranks 0, 1": the first field in which the first rank that differs from
// rank 0 does. Those two hand in what they have; "" where that tells nothing.
absl::StatusOr<std::string> DifferentField(Bootstrap& bootstrap, const MustAgree& mine,
                                           const std::vector<std::string>& values) {
  const auto other = std::ranges::find_if(values, [&](const auto& v) { return v != values[0]; });
  const auto differs = static_cast<size_t>(other - values.begin());
  const bool asked = bootstrap.rank() == 0 || bootstrap.rank() == static_cast<int>(differs);
  CADRE_ASSIGN_OR_RETURN(
      const std::vector<std::string> texts,
      bootstrap.AllGather(mine.what + " of those that differ", asked ? mine.yaml : ""));
  const auto found = CompareYaml(texts[differs], texts[0]);
  if (!found.ok() || found->empty()) return std::string();
  const auto ranks_with = [&](const std::string& value) {
    std::vector<int> ranks;
    for (size_t rank = 0; rank < values.size(); ++rank) {
      if (values[rank] == value) ranks.push_back(static_cast<int>(rank));
    }
    return RankList("rank", ranks);
  };
  const YamlDifference& field = found->front();
  std::string text = fmt::format("{} is {} on {}, {} on {}", field.path, field.first,
                                 ranks_with(*other), field.second, ranks_with(values[0]));
  if (found->size() > 1) text += fmt::format(" (and {} more differ)", found->size() - 1);
  return text;
}

}  // namespace

struct World::Member {
  std::string host;
  int64_t pid = 0;
  std::vector<std::pair<std::string, std::string>> must_agree = {};

  std::string ToJson() const {
    return nlohmann::json{{"host", host}, {"pid", pid}, {"must_agree", must_agree}}.dump();
  }
  // Throws nothing: what does not fit is an error.
  static absl::StatusOr<Member> FromJson(const std::string& text, int rank) {
    const auto json = nlohmann::json::parse(text, nullptr, false);
    Member member;
    try {
      json.at("host").get_to(member.host);
      json.at("pid").get_to(member.pid);
      json.at("must_agree").get_to(member.must_agree);
    } catch (const nlohmann::json::exception&) {
      return InvalidArgument("rank {} introduced itself with what is no introduction", rank);
    }
    return member;
  }
};

absl::Status World::CheckAgreement(const std::vector<Member>& members, Bootstrap& bootstrap,
                                   const WorldOptions& options) {
  const auto& expected = members.front().must_agree;
  std::vector<int> others;  // that must agree on other things
  for (size_t rank = 1; rank < members.size(); ++rank) {
    const auto& found = members[rank].must_agree;
    if (!std::ranges::equal(found, expected, {}, NameOf, NameOf)) {
      others.push_back(static_cast<int>(rank));
    }
  }
  if (!others.empty()) {
    return InvalidArgument("{} and rank 0 run different versions of the program",
                           RankList("rank", others));
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    RanksByValue ranks;
    std::vector<std::string> values;
    for (size_t rank = 0; rank < members.size(); ++rank) {
      values.push_back(members[rank].must_agree[i].second);
      ranks[values.back()].push_back(static_cast<int>(rank));
    }
    if (ranks.size() == 1) continue;
    std::string who;
    if (const MustAgree& mine = options.must_agree[i]; !mine.yaml.empty()) {
      who = DifferentField(bootstrap, mine, values).value_or("");
    }
    if (who.empty()) who = WhoHasWhat(ranks);
    return InvalidArgument("{}: {}; all must have the same", expected[i].first, who);
  }
  return absl::OkStatus();
}

// The lowest local rank makes the segment, the others open it.
absl::Status World::OpenShm(Bootstrap& bootstrap, const std::vector<Member>& members) {
  const bool leader = local_ranks_.front() == rank_;
  const int ranks = static_cast<int>(local_ranks_.size());
  std::string mine;
  if (leader && ranks > 1) {
    auto created = ShmSegment::Create(ranks);
    if (created.ok()) {
      segment_ = std::move(*created);
      mine = std::to_string(segment_->handle().descriptor);
    } else {
      mine = "error: " + Message(created.status());
    }
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> made,
                         bootstrap.AllGather("shared memory", mine));
  std::string outcome;
  if (!leader) {
    const int first = local_ranks_.front();
    const std::string& text = made[static_cast<size_t>(first)];
    ShmHandle handle{.pid = members[static_cast<size_t>(first)].pid, .ranks = ranks};
    std::from_chars(text.data(), text.data() + text.size(), handle.descriptor);
    auto opened = ShmSegment::Open(handle);
    if (opened.ok()) {
      segment_ = std::move(*opened);
    } else {
      outcome = Message(opened.status());
    }
  } else if (ranks > 1 && segment_ == nullptr) {
    outcome = mine;
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> outcomes,
                         bootstrap.AllGather("shared memory is open", outcome));
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (!outcomes[rank].empty()) return Unavailable("rank {}: {}", rank, outcomes[rank]);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<World>> World::Create(Bootstrap& bootstrap,
                                                     const WorldOptions& options) {
  std::unique_ptr<World> world(new World);
  world->rank_ = bootstrap.rank();
  world->size_ = bootstrap.size();
  Member self = {.host = HostIdentity(), .pid = getpid()};
  for (const MustAgree& thing : options.must_agree) {
    self.must_agree.emplace_back(thing.what, thing.value);
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                         bootstrap.AllGather("members", self.ToJson()));
  std::vector<Member> members;
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    CADRE_ASSIGN_OR_RETURN(members.emplace_back(),
                           Member::FromJson(texts[rank], static_cast<int>(rank)));
  }
  CADRE_RETURN_IF_ERROR(CheckAgreement(members, bootstrap, options));
  CADRE_RETURN_IF_ERROR(world->ChooseTransports(members, options.transport));
  CADRE_RETURN_IF_ERROR(world->OpenShm(bootstrap, members));
  CADRE_RETURN_IF_ERROR(world->OpenUcx(bootstrap));
  world->StartEngine(members, options);
  return world;
}

absl::Status World::ChooseTransports(const std::vector<Member>& members, TransportKind forced) {
  const std::string& own = members[static_cast<size_t>(rank_)].host;
  for (int rank = 0; rank < size_; ++rank) {
    const bool same_host = members[static_cast<size_t>(rank)].host == own;
    if (rank == rank_ || (same_host && forced != TransportKind::kUcx)) {
      local_ranks_.push_back(rank);
    } else if (forced == TransportKind::kShm) {
      return InvalidArgument("comm.transport: shm, but ranks {} and {} are on different hosts",
                             rank_, rank);
    }
  }
  return absl::OkStatus();
}

Doorbell::State* World::doorbell() {
  return segment_ == nullptr ? &private_doorbell_ : &segment_->slot(LocalIndex()).doorbell;
}

int World::LocalIndex() const {
  return static_cast<int>(std::ranges::find(local_ranks_, rank_) - local_ranks_.begin());
}

// All take part where any rank is out of reach of shared memory; each connects to those it needs.
absl::Status World::OpenUcx(Bootstrap& bootstrap) {
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> local,
                         bootstrap.AllGather("local ranks", std::to_string(local_ranks_.size())));
  const std::string everybody = std::to_string(size_);
  if (std::ranges::all_of(local, [&](const std::string& n) { return n == everybody; })) {
    return absl::OkStatus();
  }
  UcxOptions options{.rank = rank_,
                     .ring = [bell = Doorbell(doorbell())]() mutable { bell.Ring(); }};
  auto created = UcxTransport::Create(std::move(options));
  std::string mine = created.ok() ? (*created)->address() : std::string();
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> addresses,
                         bootstrap.AllGather("UCX addresses", std::move(mine)));
  CADRE_RETURN_IF_ERROR(created.status());
  ucx_ = std::move(*created);
  std::map<int, std::string> peers;
  for (int rank = 0; rank < size_; ++rank) {
    if (std::ranges::find(local_ranks_, rank) != local_ranks_.end()) continue;
    const std::string& address = addresses[static_cast<size_t>(rank)];
    if (address.empty()) return Unavailable("rank {} has no UCX transport", rank);
    peers[rank] = address;
  }
  return ucx_->Connect(peers);
}

void World::StartEngine(const std::vector<Member>& members, const WorldOptions& options) {
  FlightRecorder* recorder = options.recorder;
  if (recorder == nullptr) {
    own_recorder_ = *FlightRecorder::Create("", rank_);
    recorder = own_recorder_.get();
  }
  ProgressEngine::Options engine{
      .doorbell = doorbell(), .recorder = recorder, .timeout = options.timeout};
  transport_of_.assign(static_cast<size_t>(size_), ucx_.get());
  transport_of_[static_cast<size_t>(rank_)] = nullptr;
  if (segment_ != nullptr) {
    std::vector<ShmTransport::Peer> peers;
    for (const int rank : local_ranks_) {
      peers.push_back({rank, members[static_cast<size_t>(rank)].pid});
    }
    auto shm = std::make_unique<ShmTransport>(segment_, LocalIndex(), peers);
    for (const int rank : local_ranks_) {
      if (rank != rank_) transport_of_[static_cast<size_t>(rank)] = shm.get();
    }
    engine.transports.push_back(std::move(shm));
  }
  if (ucx_ != nullptr) engine.transports.push_back(std::move(ucx_));
  if (options.nccl != nullptr) {
    nccl_ = std::make_shared<NcclQueue>(options.nccl, rank_,
                                        [bell = Doorbell(doorbell())]() mutable { bell.Ring(); });
    engine.transports.push_back(std::make_unique<NcclTransport>(nccl_));
  }
  engine_ = std::make_unique<ProgressEngine>(std::move(engine));
}

World::~World() = default;

// What the next group is to this rank.
struct World::GroupPlace {
  uint32_t number = 0;
  int rank = -1;
  std::vector<Messages::Peer> peers;
};

World::GroupPlace World::NewPlace(const std::string& name, const std::vector<int>& ranks) {
  constexpr uint32_t kMostGroups = 2048;  // that message tags tell apart
  CADRE_CHECK(groups_ < kMostGroups, "more than {} groups", kMostGroups);
  GroupPlace place{.number = 2 * groups_++};
  for (const int rank : ranks) {
    CADRE_CHECK(rank >= 0 && rank < size_, "rank {} of group {} in a world of {}", rank, name,
                size_);
    if (rank == rank_) place.rank = static_cast<int>(place.peers.size());
    place.peers.push_back({rank, transport_of_[static_cast<size_t>(rank)]});
  }
  CADRE_CHECK(place.rank >= 0, "rank {} is not in its own group {}", rank_, name);
  return place;
}

std::unique_ptr<Communicator> World::NewGroup(const std::string& name,
                                              const std::vector<int>& ranks,
                                              std::chrono::milliseconds timeout) {
  GroupPlace place = NewPlace(name, ranks);
  return std::make_unique<CpuCommunicator>(*engine_,
                                           CpuCommunicator::Options{.name = name,
                                                                    .number = place.number,
                                                                    .rank = place.rank,
                                                                    .peers = std::move(place.peers),
                                                                    .timeout = timeout});
}

absl::StatusOr<std::unique_ptr<Communicator>> World::NewDeviceGroup(
    const std::string& name, const std::vector<int>& ranks, std::chrono::milliseconds timeout) {
  if (nccl_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("group {}: rank {} has no GPU, NCCL needs one for each rank", name, rank_));
  }
  const std::unique_ptr<Communicator> control = NewGroup(name, ranks, timeout);
  GroupPlace place = NewPlace(name, ranks);
  std::string message(kNcclIdMessageBytes, 0);
  if (control->rank() == 0) message = WrapNcclId(nccl_->device().MakeId());
  HostAllocator memory;
  const Tensor bytes = Tensor::Empty(memory, {kNcclIdMessageBytes}, DType::kU8);
  std::ranges::copy(message, bytes.data<uint8_t>());
  CADRE_RETURN_IF_ERROR(control->Broadcast(bytes, 0, {"NCCL id"})->Wait());
  std::ranges::copy(bytes.span<uint8_t>(), message.begin());
  CADRE_ASSIGN_OR_RETURN(const NcclId id, UnwrapNcclId(message));
  auto group =
      std::make_unique<NcclCommunicator>(*engine_, nccl_,
                                         NcclCommunicator::Options{.name = name,
                                                                   .number = place.number,
                                                                   .rank = place.rank,
                                                                   .peers = std::move(place.peers),
                                                                   .timeout = timeout,
                                                                   .id = id});
  CADRE_RETURN_IF_ERROR(group->Barrier({"NCCL start"})->Wait());
  return group;
}

}  // namespace cadre
