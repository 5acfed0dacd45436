// UcxTransport: messages between hosts, over UCX: InfiniBand or RoCE where both hosts have it, TCP
// elsewhere.
//
//   CADRE_ASSIGN_OR_RETURN(auto ucx, UcxTransport::Create({.rank = rank, .ring = ring}));
//   ... exchange ucx->address() with the peers (bootstrap.h) ...
//   CADRE_RETURN_IF_ERROR(ucx->Connect(addresses));
//
// A peer that dies is lost at once over TCP, since its system closes the connection, whether or not
// anything is under way with it; where its host vanishes as a whole, TCP's keepalive takes a few
// seconds, and other devices take what UCX gives them. A peer that destroys its transport says
// goodbye first: it is lost only to those who still want something of it, so the ranks of a world
// may leave it one after another.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "parallel/transport.h"

struct ucp_context;
struct ucp_worker;

namespace cadre {

class DescriptorWaker;

struct UcxOptions {
  int rank = -1;  // of this process in the world
  // Called on a thread of the transport, once after an Arm, and never after the transport's end.
  // Must not call into the transport.
  std::function<void()> ring;

  // As in UCX_TLS and UCX_NET_DEVICES, which these take precedence over. By default all that reach
  // other hosts, of which UCX takes the fastest: ranks of one host have ShmTransport.
  std::string transports = "^shm,self";
  std::string devices = "all";  // "eth0", "mlx5_0:1,eth1"

  // How long the transport's end waits for its peers' goodbyes.
  std::chrono::milliseconds leave_within{1000};
};

class UcxTransport : public Transport {
 public:
  static constexpr int kMaxRanks = 1 << 15;

  // kInvalidArgument: no such device or transport; kInternal: what UCX says.
  static absl::StatusOr<std::unique_ptr<UcxTransport>> Create(UcxOptions options);

  // Says goodbye (GiveUp has, where it was called) and waits for the peers' goodbyes or ends, since
  // what a peer has not read yet may be lost when its connection is closed. Then drops what is
  // under way; its bytes are never touched again.
  ~UcxTransport() override;
  UcxTransport(const UcxTransport&) = delete;
  UcxTransport& operator=(const UcxTransport&) = delete;

  // What the peers need to Connect to this rank: bytes, some hundreds of them.
  const std::string& address() const { return address_; }

  // Once, before the first message: what each peer's address() gave, by rank. Does not wait for
  // them. kInvalidArgument: not the address of that rank; kUnavailable: no device reaches it, or it
  // is gone already. A peer that only proves to be out of reach later is a PeerLoss.
  absl::Status Connect(const std::map<int, std::string>& addresses);

  void Send(int peer, uint64_t tag, std::span<const std::byte> data, Transfer* transfer) override;
  void Receive(int peer, uint64_t tag, std::span<std::byte> buffer, Transfer* transfer) override;
  std::optional<PeerLoss> Progress() override;
  std::optional<PeerLoss> CheckPeers() override { return Progress(); }
  // What the connections do not take at once goes out at the transport's end.
  void GiveUp(const PeerLoss& loss) override;
  bool Arm() override;
  size_t one_ring_bytes() const override { return 0; }

 private:
  struct Peer;
  struct Operation;
  struct Callbacks;

  explicit UcxTransport(UcxOptions options);
  absl::Status Open();
  absl::Status ReadAddress();
  Peer& PeerOf(int rank);

  Operation* Begin(Peer& peer, Transfer* transfer, size_t bytes, bool receive);
  void PostSend(Operation* operation, uint64_t tag, std::span<const std::byte> data);
  bool PostReceive(Operation* operation, uint64_t tag, std::span<std::byte> buffer);
  bool Posted(Operation* operation, void* request);
  void Finish(Operation* operation, int status, size_t bytes);
  void PostGoodbye(Peer& peer);
  void TakeGoodbye(Peer& peer, size_t bytes);
  void SayGoodbyes();
  void MoveOn();
  void Lose(Peer& peer, std::string reason);
  void Left(Peer& peer);
  bool Busy(const Peer& peer) const;
  void Abandon(Peer& peer);
  void Close(Peer& peer);
  bool FreeClosed();
  void ProgressUntil(const std::function<bool()>& done, std::chrono::milliseconds within);

  UcxOptions options_;
  ucp_context* context_ = nullptr;
  ucp_worker* worker_ = nullptr;
  int event_fd_ = -1;
  std::string address_;
  std::unique_ptr<DescriptorWaker> waker_;

  std::map<int, std::unique_ptr<Peer>> peers_;
  std::deque<Operation> operations_;  // some of them free
  std::vector<Operation*> free_;
  std::vector<void*> closing_;  // UCX's requests
  std::optional<PeerLoss> loss_;
  std::string goodbye_;  // what peers are told
  bool said_goodbye_ = false;
  bool to_drop_ = false;  // some peer is newly lost
  bool moving_ = false;   // the last Progress stopped before it was done
  bool moved_ = false;    // something since the last Arm
};

}  // namespace cadre
