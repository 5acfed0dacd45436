// The calls of proto/rendezvous.proto, answered from a Gathering of ranks, one of nodes, and the
// events of the job. Private to this folder: others use RendezvousServer.
//
// Any number of callers may wait; none holds a thread. Every call is refused before anything is
// kept of it where its token is wrong.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "cluster/gathering.h"
#include "cluster/job_events.h"
#include "cluster/rendezvous_server.h"
#include "proto/rendezvous.grpc.pb.h"

namespace cadre {

class RendezvousService final : public rendezvous::Rendezvous::CallbackService {
 public:
  explicit RendezvousService(const RendezvousServerOptions& options);
  // Ends every call that waits; later ones are refused.
  void Close();

  grpc::ServerUnaryReactor* AllGather(grpc::CallbackServerContext* context,
                                      const rendezvous::AllGatherRequest* request,
                                      rendezvous::AllGatherReply* reply) override;
  grpc::ServerUnaryReactor* Join(grpc::CallbackServerContext* context,
                                 const rendezvous::JoinRequest* request,
                                 rendezvous::JoinReply* reply) override;
  grpc::ServerUnaryReactor* Report(grpc::CallbackServerContext* context,
                                   const rendezvous::ReportRequest* request,
                                   rendezvous::ReportReply* reply) override;
  grpc::ServerUnaryReactor* Watch(grpc::CallbackServerContext* context,
                                  const rendezvous::WatchRequest* request,
                                  rendezvous::Event* reply) override;

 private:
  using Due = Gathering::Due;
  struct Start {
    std::vector<int> first_rank;  // by node
    int world_size = 0;
  };
  // Runs `change` under the lock, then what it made due.
  template <typename Change>
  void Apply(const Change& change);
  absl::Status CheckToken(const rendezvous::Caller& caller) const;
  absl::Status AdmitNode(const rendezvous::Caller& caller);
  // All nodes came: the ranks of this generation may.
  absl::StatusOr<Start> Begin(int64_t generation, const std::vector<std::string>& processes);
  // Ranks that wait when the job's outcome is known need not wait on.
  void EndRanks(Due* due);
  void KeepTime(std::stop_token stop);

  const RendezvousServerOptions options_;
  std::atomic<uint64_t> next_ticket_ = 1;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool closed_ = false;
  bool dirty_ = false;  // deadlines may have changed
  std::optional<Gathering> ranks_;
  std::optional<Gathering> nodes_;    // that come for the next start
  std::optional<Gathering> started_;  // that came for the one that runs
  std::optional<JobEvents> events_;
  std::jthread timer_;  // last: it uses the others
};

}  // namespace cadre
