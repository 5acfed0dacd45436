// World: one rank's end of a job: its transports, its progress engine, and the groups that it
// belongs to.
//
//   CADRE_ASSIGN_OR_RETURN(auto world, World::Create(bootstrap, options));
//   std::unique_ptr<Communicator> tp = world->NewGroup("tp", ranks);
//
// Shared memory connects ranks of one host (same kernel, process namespace and user), UCX the
// others; `transport` forces one. Groups of tensors on GPUs are NewDeviceGroup's, by NCCL.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "parallel/bootstrap.h"
#include "parallel/communicator.h"
#include "parallel/flight_recorder.h"
#include "parallel/nccl_queue.h"
#include "parallel/progress_engine.h"
#include "parallel/shm_segment.h"
#include "parallel/ucx_transport.h"

namespace cadre {

enum class TransportKind : uint8_t { kAuto, kShm, kUcx };

// What all ranks must have the same of.
struct MustAgree {
  std::string what;
  std::string value;
  // The YAML document that `value` is the hash of, if it is one: ranks that differ exchange theirs
  // to name the field.
  std::string yaml = {};
};

struct WorldOptions {
  TransportKind transport = TransportKind::kAuto;
  std::chrono::milliseconds timeout = std::chrono::minutes(10);  // of one operation
  std::vector<MustAgree> must_agree;                             // the same names in the same order
  FlightRecorder* recorder = nullptr;  // outlives the world; null: kept in this process alone
  std::shared_ptr<NcclDevice> nccl;    // this rank's GPU, no other rank's; null: no device groups
};

class World {
 public:
  // Blocks until all ranks are there. kInvalidArgument: ranks that disagree, by name; a forced
  // transport that cannot reach a rank.
  static absl::StatusOr<std::unique_ptr<World>> Create(Bootstrap& bootstrap,
                                                       const WorldOptions& options);
  // Groups must be gone. Ranks that still wait for this one fail.
  ~World();

  int rank() const { return rank_; }
  int size() const { return size_; }
  // Ranks that shared memory connects, this one included, ascending.
  const std::vector<int>& local_ranks() const { return local_ranks_; }

  // `ranks` of the world, this one included. Every rank of the world makes the same number of
  // groups in the same order, as one of several disjoint groups or alone.
  // timeout: of its operations; 0: the world's.
  std::unique_ptr<Communicator> NewGroup(const std::string& name, const std::vector<int>& ranks,
                                         std::chrono::milliseconds timeout = {});

  // The same for tensors on the ranks' GPUs (nccl_communicator.h); counts as two groups. Blocks
  // until all its ranks have opened it. kFailedPrecondition: this world has no GPU; kInternal: what
  // the rank that makes NCCL's id says; else the world's failure.
  absl::StatusOr<std::unique_ptr<Communicator>> NewDeviceGroup(
      const std::string& name, const std::vector<int>& ranks,
      std::chrono::milliseconds timeout = {});

  // What is recorded of all operations; see ProgressEngine.
  void set_trace(Trace* trace) { engine_->set_trace(trace); }

  // The first failure of any group.
  absl::Status status() { return engine_->status(); }

 private:
  struct Member;  // what a rank tells the others
  struct GroupPlace;
  World() = default;
  static absl::Status CheckAgreement(const std::vector<Member>& members, Bootstrap& bootstrap,
                                     const WorldOptions& options);
  void StartEngine(const std::vector<Member>& members, const WorldOptions& options);
  absl::Status ChooseTransports(const std::vector<Member>& members, TransportKind forced);
  absl::Status OpenShm(Bootstrap& bootstrap, const std::vector<Member>& members);
  absl::Status OpenUcx(Bootstrap& bootstrap);
  GroupPlace NewPlace(const std::string& name, const std::vector<int>& ranks);
  Doorbell::State* doorbell();
  int LocalIndex() const;

  int rank_ = 0, size_ = 0;
  std::vector<int> local_ranks_;
  std::shared_ptr<ShmSegment> segment_;    // of local_ranks_
  Doorbell::State private_doorbell_ = {};  // where there is no segment
  std::unique_ptr<FlightRecorder> own_recorder_;
  std::unique_ptr<UcxTransport> ucx_;     // until the engine has it
  std::vector<Transport*> transport_of_;  // by rank; null for this one; owned by the engine
  std::shared_ptr<NcclQueue> nccl_;       // null without a GPU; ended by the engine
  std::unique_ptr<ProgressEngine> engine_;
  uint32_t groups_ = 0;
};

}  // namespace cadre
