// ShmTransport: messages between the ranks of one host through a ShmSegment.
//
// Messages of up to one_ring_bytes() are copied into the receiver's ring at once. Larger ones wait
// until the receiver has posted its buffer and says so, then stream through the ring in fragments:
// a slow rank holds up its peers instead of piling up their data. Order between messages is free;
// tags say which is which.
#pragma once

#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "parallel/shm_segment.h"
#include "parallel/transport.h"

namespace cadre {

class ShmTransport : public Transport {
 public:
  struct Peer {
    int rank = -1;    // in the world
    int64_t pid = 0;  // this process's own where ranks are threads
  };

  // peers: one per local rank, this one's included. The segment is shared with the engine's
  // doorbell.
  ShmTransport(std::shared_ptr<ShmSegment> segment, int local_rank, const std::vector<Peer>& peers);
  // Marks the rank as left.
  ~ShmTransport() override;

  void Send(int peer, uint64_t tag, std::span<const std::byte> data, Transfer* transfer) override;
  void Receive(int peer, uint64_t tag, std::span<std::byte> buffer, Transfer* transfer) override;
  std::optional<PeerLoss> Progress() override;
  std::optional<PeerLoss> CheckPeers() override;
  bool Arm() override { return true; }
  void Watch(int peer, int change) override;
  void GiveUp(const PeerLoss& loss) override;
  size_t one_ring_bytes() const override { return kEagerBytes; }

 private:
  static constexpr size_t kEagerBytes = 8 << 10;

  struct Outgoing {
    uint64_t tag;
    std::span<const std::byte> data;
    Transfer* transfer;
    size_t sent = 0;
  };
  struct Incoming {
    std::span<std::byte> buffer;
    Transfer* transfer;
    size_t received = 0;
  };
  struct FrameHeader;
  struct Link {
    int rank = -1, local = -1;
    int pidfd = -1;  // -1: a thread of this process, or gone
    bool gone = false;
    int watches = 0;
    bool wrong_size = false;       // a message that came early was not of the size awaited
    std::deque<Outgoing> queue;    // small messages and clearances that wait for space
    std::deque<Outgoing> streams;  // large messages that the receiver has cleared
    std::unordered_map<uint64_t, Outgoing> uncleared;
    std::unordered_map<uint64_t, bool> cleared_early;  // cleared before they were sent
    std::unordered_map<uint64_t, Incoming> posted;
    std::unordered_map<uint64_t, std::vector<std::byte>> unexpected;
    size_t unexpected_bytes = 0;
  };

  Link& LinkTo(int peer);
  bool Push(Link& link, const FrameHeader& header, std::span<const std::byte> payload);
  void Flush(Link& link);
  std::optional<PeerLoss> Drain(Link& link);
  std::optional<PeerLoss> Take(Link& link, const FrameHeader& header, uint64_t at);
  std::optional<PeerLoss> TakeData(Link& link, const FrameHeader& header, uint64_t at);
  void CopyOut(const Link& link, uint64_t at, std::span<std::byte> into) const;
  std::optional<PeerLoss> Announced() const;
  static PeerLoss WrongSize(const Link& link);
  bool Busy(const Link& link) const;

  std::shared_ptr<ShmSegment> segment_;
  const int local_rank_;
  std::vector<Link> links_;
  std::unordered_map<int, int> link_of_;  // world rank -> index in links_
};

}  // namespace cadre
