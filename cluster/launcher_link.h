// A launcher's line to the rendezvous, where the launchers of a job agree on how it is cut up and
// tell one another what happened. Private to this folder.
//
// Join blocks; Watch and Report do not. Events come on a thread of gRPC's.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cluster/rendezvous_channel.h"
#include "core/status.h"
#include "proto/rendezvous.grpc.pb.h"

namespace cadre {

class LauncherLink {
 public:
  using OnEvent = std::function<void(const rendezvous::Event&)>;

  // `peer`'s number and size are of nodes.
  static absl::StatusOr<std::unique_ptr<LauncherLink>> Connect(const RendezvousPeer& peer);
  // Gives up what is under way; no event comes after it.
  ~LauncherLink();

  // For the next start; `generation` is the one that it must be, -1 before this launcher's first.
  // Blocks until it begins. Where the reply's nodes have not this one among them, that start runs
  // without it, and the one after it may have room.
  absl::StatusOr<rendezvous::JoinReply> Join(int64_t generation, int processes);
  // The events of a generation, in order, up to its outcome. Where the rendezvous is gone, that is
  // the last one: node 0's launcher is.
  void Watch(int64_t generation, OnEvent on_event) {
    WatchFrom(generation, 0, std::move(on_event));
  }
  // Arrives after what was reported before it: each waits for the answer to the one in front.
  void Report(int64_t generation, const rendezvous::Event& event);

 private:
  explicit LauncherLink(const RendezvousPeer& peer) : peer_(peer), caller_(MakeCaller(peer)) {}
  // Holds the call by which the rendezvous notices when this launcher is gone.
  void Attend();
  void WatchFrom(int64_t generation, int number, OnEvent on_event);
  void SendReport(int64_t generation, const rendezvous::Event& event);
  void SendNextReport();
  rendezvous::Caller CallerOf(int64_t generation) const;
  template <typename Request, typename Reply>
  struct Call;
  // A call that lives until End(*ticket); null: this link ends.
  template <typename Request, typename Reply>
  Call<Request, Reply>* Begin(uint64_t* ticket);
  void End(uint64_t ticket);

  const RendezvousPeer peer_;
  const rendezvous::Caller caller_;
  std::unique_ptr<rendezvous::Rendezvous::Stub> stub_;
  std::mutex mutex_;
  std::condition_variable idle_;
  bool ending_ = false;
  int under_way_ = 0;
  uint64_t next_ticket_ = 0;
  std::map<uint64_t, std::shared_ptr<grpc::ClientContext>> calls_;
  bool reporting_ = false;
  std::deque<std::pair<int64_t, rendezvous::Event>> reports_;  // that wait, with their generations
};

}  // namespace cadre
