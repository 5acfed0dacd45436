// Transport: messages between ranks, the layer under every collective. Shared memory between the
// ranks of a host (shm_transport.h), UCX between hosts (ucx_transport.h).
//
// One thread at a time calls (the progress engine's lock sees to that); nothing here blocks. After
// a successful Arm the transport rings the rank's doorbell when calling Progress may help again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

namespace cadre {

// One message on its way, owned by whoever posted it. It and its bytes must stay until it is done
// or the transport is gone.
struct Transfer {
  bool done = false;
};

// 48 bits that are one message's alone between two ranks for as long as it is in flight: the
// communicator, its operation and the piece of that operation. Counters wrap.
constexpr uint64_t MakeTag(uint32_t communicator, uint32_t operation, uint32_t piece) {
  return (uint64_t{communicator & 0xfffu} << 36) | (uint64_t{operation & 0xfffffu} << 16) |
         (piece & 0xffffu);
}

struct PeerLoss {
  int peer = -1;           // rank in the world
  std::string reason;      // "its process is gone"
  bool announced = false;  // by a rank that gave up: the reason is that rank's whole message
};

class Transport {
 public:
  virtual ~Transport() = default;

  // `peer` is a rank of the world that this transport reaches. Both ends know the size: a message
  // of another size than its receive is a broken invariant, or a hostile peer. It never writes past
  // the buffer, and ends in a PeerLoss or in the operation's time-out. Empty messages are allowed.
  virtual void Send(int peer, uint64_t tag, std::span<const std::byte> data,
                    Transfer* transfer) = 0;
  virtual void Receive(int peer, uint64_t tag, std::span<std::byte> buffer, Transfer* transfer) = 0;

  // Moves what moves without waiting. A peer that is lost stays so.
  virtual std::optional<PeerLoss> Progress() = 0;

  // Looks whether the peers still live; costs system calls, so it is called a few times a second.
  virtual std::optional<PeerLoss> CheckPeers() = 0;

  // While peers are watched (calls add up: 1 begins, -1 ends) the end of their process is a loss even
  // where no message is under way. Transports that notice it anyway need not do anything.
  virtual void Watch(int peer, int change) {}

  // Tells all peers that this rank's world has failed and why; they report it as their own loss.
  virtual void GiveUp(const PeerLoss& loss) = 0;

  // To be called before sleeping on the doorbell. False: call Progress first, something arrived.
  virtual bool Arm() = 0;

  // The largest message that arrives as one ring of the doorbell, whenever it is sent; 0 where
  // rings say nothing of the kind. What a sleeper that waits for several such messages counts.
  virtual size_t one_ring_bytes() const = 0;
};

}  // namespace cadre
