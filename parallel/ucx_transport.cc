#include "parallel/ucx_transport.h"

#include <poll.h>
#include <ucp/api/ucp.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "parallel/descriptor_waker.h"
#include "parallel/ucx_address.h"

namespace cadre {
namespace {

// A tag of UCX: one bit, 15 bits of the sender's rank, the message's 48 bits.
constexpr uint64_t kGoodbyeBit = uint64_t{1} << 63;
constexpr int kRankShift = 48;
static_assert(UcxTransport::kMaxRanks == 1 << (63 - kRankShift));

// A goodbye is empty, or the culprit's rank and the reason of a rank that gave up.
constexpr size_t kMaxGoodbyeBytes = 1024;

constexpr int kProgressRounds = 1024;
constexpr std::chrono::milliseconds kCloseWithin{200};

absl::Status UcxError(const char* call, ucs_status_t status) {
  return Internal("{}: {}", call, ucs_status_string(status));
}

using ConfigPtr = std::unique_ptr<ucp_config_t, decltype(&ucp_config_release)>;

absl::StatusOr<ConfigPtr> MakeConfig(const UcxOptions& options) {
  ucp_config_t* raw = nullptr;
  if (ucs_status_t status = ucp_config_read(nullptr, nullptr, &raw); status != UCS_OK) {
    return UcxError("ucp_config_read", status);
  }
  ConfigPtr config(raw, &ucp_config_release);
  const std::pair<const char*, const char*> settings[] = {
      {"TLS", options.transports.c_str()},
      {"NET_DEVICES", options.devices.c_str()},
      {"KEEPALIVE_INTERVAL", "500ms"},
      {"TCP_KEEPIDLE", "1s"},
      {"TCP_KEEPINTVL", "1s"},
      {"TCP_KEEPCNT", "3"},
      // UCX 1.13 aborts where a TCP connection breaks while it sends from the caller's memory: it
      // completes the send twice. Through its own buffers it does not, for a copy.
      {"ZCOPY_THRESH", "inf"},
      {"TCP_PUT_ENABLE", "n"},
      {"TCP_TX_SEG_SIZE", "64kb"},
      {"TCP_CONN_NB", "y"},    // a host that does not answer must not hold Connect
      {"LOG_LEVEL", "fatal"},  // UCX logs to standard output; its errors reach us as statuses
  };
  for (const auto& [name, value] : settings) {
    if (ucs_status_t status = ucp_config_modify(raw, name, value); status != UCS_OK) {
      return InvalidArgument("ucp_config_modify {} to '{}': {}", name, value,
                             ucs_status_string(status));
    }
  }
  return config;
}

}  // namespace

struct UcxTransport::Peer {
  UcxTransport* transport = nullptr;
  int rank = -1;
  ucp_ep_h endpoint = nullptr;   // null once it is being closed
  Operation* goodbye = nullptr;  // the receive of its own
  std::array<std::byte, kMaxGoodbyeBytes> goodbye_bytes;
  bool lost = false;    // a PeerLoss
  bool left = false;    // it said goodbye
  bool failed = false;  // its endpoint is of no more use
};

// A message on its way. The transfer is null where nobody waits for it (any more).
struct UcxTransport::Operation {
  Peer* peer = nullptr;  // null: free
  Transfer* transfer = nullptr;
  void* request = nullptr;  // UCX's
  size_t bytes = 0;
  bool receive = false;
};

// UCX calls these within ucp_worker_progress, ucp_request_cancel and ucp_worker_destroy.
struct UcxTransport::Callbacks {
  static void OnSent(void* request, ucs_status_t status, void* argument) {
    auto* operation = static_cast<Operation*>(argument);
    ucp_request_free(request);
    operation->peer->transport->Finish(operation, status, operation->bytes);
  }

  static void OnReceived(void* request, ucs_status_t status, const ucp_tag_recv_info_t* info,
                         void* argument) {
    auto* operation = static_cast<Operation*>(argument);
    const size_t bytes = info->length;
    ucp_request_free(request);
    operation->peer->transport->Finish(operation, status, bytes);
  }

  static void OnEndpointError(void* argument, ucp_ep_h endpoint, ucs_status_t status) {
    auto* peer = static_cast<Peer*>(argument);
    peer->failed = peer->transport->to_drop_ = true;
    if (!peer->left) {
      peer->transport->Lose(*peer,
                            fmt::format("its connection failed: {}", ucs_status_string(status)));
    }
  }

  static ucp_request_param_t Parameters(Operation* operation) {
    ucp_request_param_t parameters{};
    parameters.op_attr_mask =
        UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
    parameters.user_data = operation;
    parameters.memory_type = UCS_MEMORY_TYPE_HOST;
    return parameters;
  }
};

absl::StatusOr<std::unique_ptr<UcxTransport>> UcxTransport::Create(UcxOptions options) {
  CADRE_CHECK(options.ring != nullptr);
  if (options.rank < 0 || options.rank >= kMaxRanks) {
    return InvalidArgument("UCX transport: rank {}, allowed are 0 to {}", options.rank,
                           kMaxRanks - 1);
  }
  std::unique_ptr<UcxTransport> transport(new UcxTransport(std::move(options)));
  CADRE_RETURN_IF_ERROR(transport->Open());
  CADRE_RETURN_IF_ERROR(transport->ReadAddress());
  CADRE_ASSIGN_OR_RETURN(transport->waker_,
                         DescriptorWaker::Create(transport->event_fd_, transport->options_.ring));
  return transport;
}

UcxTransport::UcxTransport(UcxOptions options) : options_(std::move(options)) {}

absl::Status UcxTransport::Open() {
  CADRE_ASSIGN_OR_RETURN(ConfigPtr config, MakeConfig(options_));
  ucp_params_t parameters{};
  parameters.field_mask = UCP_PARAM_FIELD_FEATURES;
  parameters.features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP;
  ucs_status_t status = ucp_init(&parameters, config.get(), &context_);
  if (status == UCS_ERR_NO_DEVICE) {
    return InvalidArgument("UCX transport: no device for transports '{}', devices '{}'",
                           options_.transports, options_.devices);
  }
  if (status != UCS_OK) return UcxError("ucp_init", status);

  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  status = ucp_worker_create(context_, &worker, &worker_);
  if (status != UCS_OK) return UcxError("ucp_worker_create", status);
  status = ucp_worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return UcxError("ucp_worker_get_efd", status);
  return absl::OkStatus();
}

absl::Status UcxTransport::ReadAddress() {
  ucp_address_t* raw = nullptr;
  size_t bytes = 0;
  if (ucs_status_t status = ucp_worker_get_address(worker_, &raw, &bytes); status != UCS_OK) {
    return UcxError("ucp_worker_get_address", status);
  }
  address_ = WrapUcxAddress(options_.rank, {reinterpret_cast<const char*>(raw), bytes});
  ucp_worker_release_address(worker_, raw);
  return absl::OkStatus();
}

absl::Status UcxTransport::Connect(const std::map<int, std::string>& addresses) {
  CADRE_CHECK(peers_.empty());
  for (const auto& [rank, address] : addresses) {
    CADRE_CHECK(rank >= 0 && rank < kMaxRanks && rank != options_.rank, "rank {}", rank);
    CADRE_ASSIGN_OR_RETURN(const std::string bytes, UnwrapUcxAddress(rank, address, address_));
    auto peer = std::make_unique<Peer>(Peer{.transport = this, .rank = rank});
    ucp_ep_params_t parameters{};
    parameters.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS |
                            UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
    parameters.address = reinterpret_cast<const ucp_address_t*>(bytes.data());
    parameters.err_mode = UCP_ERR_HANDLING_MODE_PEER;
    parameters.err_handler = {.cb = &Callbacks::OnEndpointError, .arg = peer.get()};
    ucs_status_t status = ucp_ep_create(worker_, &parameters, &peer->endpoint);
    if (status != UCS_OK) {
      return Unavailable("ucp_ep_create to rank {} with transports '{}', devices '{}': {}", rank,
                         options_.transports, options_.devices, ucs_status_string(status));
    }
    PostGoodbye(*peers_.emplace(rank, std::move(peer)).first->second);
  }
  return absl::OkStatus();
}

UcxTransport::Peer& UcxTransport::PeerOf(int rank) {
  auto found = peers_.find(rank);
  CADRE_CHECK(found != peers_.end(), "rank {} is not connected", rank);
  return *found->second;
}

void UcxTransport::Send(int rank, uint64_t tag, std::span<const std::byte> data,
                        Transfer* transfer) {
  CADRE_CHECK(tag >> kRankShift == 0, "tag {:#x}", tag);
  Peer& peer = PeerOf(rank);
  if (peer.left) Left(peer);
  if (peer.endpoint == nullptr || peer.lost) return;
  const uint64_t source = static_cast<uint64_t>(options_.rank) << kRankShift;
  PostSend(Begin(peer, transfer, data.size(), false), source | tag, data);
}

void UcxTransport::Receive(int rank, uint64_t tag, std::span<std::byte> buffer,
                           Transfer* transfer) {
  CADRE_CHECK(tag >> kRankShift == 0, "tag {:#x}", tag);
  Peer& peer = PeerOf(rank);
  if (peer.lost) return;
  Operation* operation = Begin(peer, transfer, buffer.size(), true);
  const uint64_t source = static_cast<uint64_t>(rank) << kRankShift;
  // All that it sent had arrived before its goodbye.
  if (!PostReceive(operation, source | tag, buffer) && peer.left) Left(peer);
}

void UcxTransport::PostGoodbye(Peer& peer) {
  peer.goodbye = Begin(peer, nullptr, 0, true);
  PostReceive(peer.goodbye, kGoodbyeBit | static_cast<uint64_t>(peer.rank) << kRankShift,
              peer.goodbye_bytes);
}

void UcxTransport::TakeGoodbye(Peer& peer, size_t bytes) {
  peer.left = true;
  PeerLoss loss = {.announced = true};
  if (bytes <= sizeof(loss.peer)) {
    if (Busy(peer)) Left(peer);
    return;
  }
  std::memcpy(&loss.peer, peer.goodbye_bytes.data(), sizeof(loss.peer));
  if (loss.peer < 0 || loss.peer >= kMaxRanks) loss.peer = peer.rank;
  loss.reason.assign(reinterpret_cast<const char*>(peer.goodbye_bytes.data()) + sizeof(loss.peer),
                     bytes - sizeof(loss.peer));
  if (!loss_ || !loss_->announced) loss_ = std::move(loss);
}

void UcxTransport::GiveUp(const PeerLoss& loss) {
  if (std::exchange(said_goodbye_, true)) return;
  goodbye_.assign(reinterpret_cast<const char*>(&loss.peer), sizeof(loss.peer));
  goodbye_.append(loss.reason, 0, kMaxGoodbyeBytes - sizeof(loss.peer));
  SayGoodbyes();
  MoveOn();
}

void UcxTransport::SayGoodbyes() {
  const uint64_t source = static_cast<uint64_t>(options_.rank) << kRankShift;
  for (auto& [rank, peer] : peers_) {
    if (peer->endpoint == nullptr || peer->failed) continue;
    PostSend(Begin(*peer, nullptr, goodbye_.size(), false), kGoodbyeBit | source,
             std::as_bytes(std::span(goodbye_)));
  }
}

void UcxTransport::PostSend(Operation* operation, uint64_t tag, std::span<const std::byte> data) {
  ucp_request_param_t parameters = Callbacks::Parameters(operation);
  parameters.cb.send = &Callbacks::OnSent;
  Posted(operation,
         ucp_tag_send_nbx(operation->peer->endpoint, data.data(), data.size(), tag, &parameters));
}

// True where the message is through already.
bool UcxTransport::PostReceive(Operation* operation, uint64_t tag, std::span<std::byte> buffer) {
  ucp_request_param_t parameters = Callbacks::Parameters(operation);
  // UCX 1.13 tells the length of what it received to the callback alone.
  parameters.op_attr_mask |= UCP_OP_ATTR_FLAG_NO_IMM_CMPL;
  parameters.cb.recv = &Callbacks::OnReceived;
  return Posted(operation, ucp_tag_recv_nbx(worker_, buffer.data(), buffer.size(), tag,
                                            ~uint64_t{0}, &parameters));
}

UcxTransport::Operation* UcxTransport::Begin(Peer& peer, Transfer* transfer, size_t bytes,
                                             bool receive) {
  if (free_.empty()) free_.push_back(&operations_.emplace_back());
  Operation* operation = free_.back();
  free_.pop_back();
  *operation = {.peer = &peer, .transfer = transfer, .bytes = bytes, .receive = receive};
  return operation;
}

// `request` is what UCX returned: a request, an error, or null for a message that is through. True
// where it is through. UCX may have called back before it returned a request.
bool UcxTransport::Posted(Operation* operation, void* request) {
  if (operation->peer == nullptr) return true;
  if (UCS_PTR_IS_PTR(request)) {
    operation->request = request;
    return false;
  }
  Finish(operation, UCS_PTR_STATUS(request), operation->bytes);
  return true;
}

void UcxTransport::Finish(Operation* operation, int status, size_t bytes) {
  const Operation finished = std::exchange(*operation, {});
  free_.push_back(operation);
  Peer& peer = *finished.peer;
  if (operation == peer.goodbye) {
    peer.goodbye = nullptr;
    if (status == UCS_OK) TakeGoodbye(peer, bytes);
  } else if (finished.transfer == nullptr) {
    return;
  } else if (status == UCS_OK && bytes == finished.bytes) {
    finished.transfer->done = true;
  } else if (status == UCS_OK || status == UCS_ERR_MESSAGE_TRUNCATED) {
    Lose(peer, fmt::format("it sent {} bytes where {} were due", bytes, finished.bytes));
  } else {
    Lose(peer, fmt::format("{}: {}", finished.receive ? "ucp_tag_recv_nbx" : "ucp_tag_send_nbx",
                           ucs_status_string(static_cast<ucs_status_t>(status))));
  }
}

std::optional<PeerLoss> UcxTransport::Progress() {
  MoveOn();
  if (std::exchange(to_drop_, false)) {
    for (auto& [rank, peer] : peers_) {
      if (peer->lost || peer->failed) Abandon(*peer);
      if (peer->failed) Close(*peer);
    }
  }
  FreeClosed();
  return loss_;
}

void UcxTransport::MoveOn() {
  moving_ = true;
  for (int round = 0; moving_ && round < kProgressRounds; ++round) {
    moving_ = ucp_worker_progress(worker_) != 0;
    moved_ |= moving_;
  }
}

bool UcxTransport::Arm() {
  if (moving_) return false;
  const ucs_status_t status = ucp_worker_arm(worker_);
  if (status == UCS_ERR_BUSY) return false;
  CADRE_CHECK(status == UCS_OK, "ucp_worker_arm: {}", ucs_status_string(status));
  waker_->Arm(std::exchange(moved_, false));
  return true;
}

void UcxTransport::Lose(Peer& peer, std::string reason) {
  if (peer.lost) return;
  peer.lost = to_drop_ = true;
  if (!loss_) loss_ = PeerLoss{.peer = peer.rank, .reason = std::move(reason)};
}

void UcxTransport::Left(Peer& peer) { Lose(peer, "it has left the world"); }

bool UcxTransport::Busy(const Peer& peer) const {
  for (const Operation& operation : operations_) {
    if (operation.peer == &peer && operation.transfer != nullptr) return true;
  }
  return false;
}

// Its transfers will not be touched again, except that UCX may still write to the bytes of a
// receive that its message had reached, until the transport is gone.
void UcxTransport::Abandon(Peer& peer) {
  for (Operation& operation : operations_) {
    if (operation.peer != &peer || &operation == peer.goodbye) continue;
    operation.transfer = nullptr;
    if (operation.receive) ucp_request_cancel(worker_, operation.request);
  }
}

void UcxTransport::Close(Peer& peer) {
  if (peer.goodbye != nullptr) ucp_request_cancel(worker_, peer.goodbye->request);
  if (peer.endpoint == nullptr) return;
  ucp_request_param_t parameters{};
  parameters.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  parameters.flags = UCP_EP_CLOSE_FLAG_FORCE;
  void* request = ucp_ep_close_nbx(std::exchange(peer.endpoint, nullptr), &parameters);
  if (UCS_PTR_IS_PTR(request)) closing_.push_back(request);
}

bool UcxTransport::FreeClosed() {
  std::erase_if(closing_, [](void* request) {
    if (ucp_request_check_status(request) == UCS_INPROGRESS) return false;
    ucp_request_free(request);
    return true;
  });
  return closing_.empty();
}

void UcxTransport::ProgressUntil(const std::function<bool()>& done,
                                 std::chrono::milliseconds within) {
  const auto end = std::chrono::steady_clock::now() + within;
  while (!done()) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    if (ucp_worker_progress(worker_) != 0 || ucp_worker_arm(worker_) != UCS_OK) continue;
    pollfd event{.fd = event_fd_, .events = POLLIN};
    poll(&event, 1, static_cast<int>(left.count()));
  }
}

UcxTransport::~UcxTransport() {
  waker_.reset();
  if (!said_goodbye_) SayGoodbyes();
  ProgressUntil(
      [&] {
        return std::ranges::all_of(
            peers_, [](const auto& peer) { return peer.second->left || peer.second->failed; });
      },
      options_.leave_within);
  for (auto& [rank, peer] : peers_) {
    Abandon(*peer);
    Close(*peer);
  }
  ProgressUntil([&] { return FreeClosed(); }, kCloseWithin);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

}  // namespace cadre
