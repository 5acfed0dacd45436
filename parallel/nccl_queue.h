// NcclQueue: launches a rank's operations on its GPU, on a thread of its own, and learns when they
// are done. NcclTransport is its face towards the ProgressEngine, which thus has operations on a
// GPU among all others: recorded, timed out, and ended with one error when a rank is lost.
//
// Operations come here only after all their ranks have come (nccl_communicator.cc), so NCCL never
// waits for one that is missing. Those of one link are launched in the order of their numbers,
// which is the same on all ranks, whichever is here first. NCCL's calls do not block (its
// communicators are non-blocking), but some take long: a link's first operation connects it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "parallel/nccl_device.h"
#include "parallel/transport.h"

namespace cadre {

// One operation of this rank, from its call to its end on the GPU.
struct NcclOperation {
  std::string what;     // "all_reduce 'layer 3 mlp' of group tp"
  uint32_t number = 0;  // on its link, from 0, without gaps
  NcclCalls calls;
  absl::Status status;                 // of the call on this rank; a failure is one at the launch
  std::unique_ptr<DeviceEvent> event;  // what it waits for; once launched, its end

  // The queue's.
  Transfer* transfer = nullptr;
  bool launched = false;
};
using NcclOperationPtr = std::shared_ptr<NcclOperation>;

class NcclQueue {
 public:
  struct Link;
  using LinkPtr = std::shared_ptr<Link>;  // dropped by all others, the queue ends it

  // `ring` is called when Progress may help, from any thread, and not after Shutdown.
  NcclQueue(std::shared_ptr<NcclDevice> device, int rank, std::function<void()> ring);
  ~NcclQueue();
  NcclQueue(const NcclQueue&) = delete;
  NcclQueue& operator=(const NcclQueue&) = delete;

  NcclDevice& device() { return *device_; }

  // Any thread.
  LinkPtr NewLink();
  // Nothing where it has been opened.
  void Open(const LinkPtr& link, const NcclId& id, NcclPlace place);
  void Launch(const LinkPtr& link, NcclOperationPtr operation, Transfer* transfer);
  // True once it is launched, and its event is its end; false where the queue ended first.
  bool AwaitLaunch(const NcclOperation& operation);
  bool launched(const NcclOperation& operation);
  // After links were dropped.
  void Reap();

  // Marks the transfers of operations that are done; what went wrong first, if anything did.
  std::optional<PeerLoss> Progress();

  // The world has failed: links end alone, since peers may not take part.
  void GiveUp();
  // Stops all that is under way. Afterwards nothing touches a tensor or a transfer.
  void Shutdown();

 private:
  using Lock = std::unique_lock<std::mutex>;
  class Bell;

  void Run();
  bool Step(Link& link, Lock& lock);
  bool OpenLink(Link& link, Lock& lock);
  bool FinishLaunch(Link& link, Lock& lock);
  bool BeginLaunch(Link& link, Lock& lock);
  bool EndDropped(Lock& lock);
  bool EndLink(Link& link, Lock& lock);
  void EndAll(Lock& lock);
  static bool Idle(const Link& link);
  bool Done(const Link& link);
  bool AnyRunning() const;
  void Fail(const Link& link, const absl::Status& status);

  const std::shared_ptr<NcclDevice> device_;
  const int rank_;  // in the world
  const std::shared_ptr<Bell> bell_;

  std::mutex mutex_;  // of everything below, but for the links' ends, which are the thread's
  std::condition_variable work_, launched_;
  std::list<LinkPtr> links_;
  std::optional<PeerLoss> loss_;
  bool changed_ = false, gave_up_ = false, stopping_ = false, ended_ = false;
  std::thread thread_;  // last: it uses all of the above
};

// No messages travel by it.
class NcclTransport : public Transport {
 public:
  explicit NcclTransport(std::shared_ptr<NcclQueue> queue) : queue_(std::move(queue)) {}
  ~NcclTransport() override { queue_->Shutdown(); }

  void Send(int peer, uint64_t tag, std::span<const std::byte> data, Transfer* transfer) override;
  void Receive(int peer, uint64_t tag, std::span<std::byte> buffer, Transfer* transfer) override;
  std::optional<PeerLoss> Progress() override { return queue_->Progress(); }
  std::optional<PeerLoss> CheckPeers() override { return std::nullopt; }
  void GiveUp(const PeerLoss&) override { queue_->GiveUp(); }
  bool Arm() override { return true; }
  size_t one_ring_bytes() const override { return 0; }

 private:
  std::shared_ptr<NcclQueue> queue_;
};

}  // namespace cadre
