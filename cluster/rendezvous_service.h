// The calls of proto/rendezvous.proto, answered from a Gathering of ranks, the rounds of nodes and
// the events of a start. Private to this folder: others use RendezvousServer.
//
// Any number of callers may wait; none holds a thread. Every call is refused before anything is
// kept of it where its token is wrong.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "cluster/gathering.h"
#include "cluster/job_events.h"
#include "cluster/node_rounds.h"
#include "cluster/rendezvous_server.h"
#include "proto/rendezvous.grpc.pb.h"

namespace cadre {

class RendezvousService final : public rendezvous::Rendezvous::CallbackService {
 public:
  explicit RendezvousService(const RendezvousServerOptions& options);
  // Ends every call that waits; later ones are refused. Where a start is over, its launchers get a
  // short time to ask for the outcome first.
  void Close();

  grpc::ServerUnaryReactor* AllGather(grpc::CallbackServerContext* context,
                                      const rendezvous::AllGatherRequest* request,
                                      rendezvous::AllGatherReply* reply) override;
  grpc::ServerUnaryReactor* Attend(grpc::CallbackServerContext* context,
                                   const rendezvous::AttendRequest* request,
                                   rendezvous::AttendReply* reply) override;
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
  struct Attending {
    int node = 0;
    std::function<void(const absl::Status&)> end;
  };
  // Runs `change` under the lock, then what it made due.
  template <typename Change>
  void Apply(const Change& change);
  absl::Status CheckToken(const rendezvous::Caller& caller) const;
  absl::Status AdmitNode(const rendezvous::Caller& caller) const;
  Due TakeReport(int node, const rendezvous::Event& event);
  // What one part tells the others, after any change.
  void Settle(Due* due);
  void EndStart(Due* due);
  void Lose(const NodeRounds::Member& member, Due* due);
  bool AllTold() const;
  void KeepTime(std::stop_token stop);

  const RendezvousServerOptions options_;
  const Gathering::Clock::time_point began_ = Gathering::Clock::now();
  std::atomic<uint64_t> next_ticket_ = 1;
  std::atomic<int64_t> restarts_ = 0;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  bool closed_ = false;
  bool dirty_ = false;  // deadlines may have changed
  std::optional<Gathering> ranks_;
  std::optional<NodeRounds> nodes_;
  std::optional<JobEvents> events_;          // of the latest start
  std::map<uint64_t, Attending> attending_;  // by ticket
  std::jthread timer_;                       // last: it uses the others
};

}  // namespace cadre
