#include "parallel/shm_transport.h"

#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace cadre {
namespace {

// What nobody has asked for yet is copied aside, so that it does not hold up what lies behind it.
constexpr size_t kMaxUnexpectedBytes = 64 << 20;
constexpr size_t kMaxEarly = 1 << 16;  // messages that came, or are cleared, before their time
constexpr size_t kFragmentBytes = 64 << 10;
constexpr size_t kAlign = 16;

enum class FrameKind : uint32_t { kWhole = 1, kClear = 2, kFragment = 3 };

size_t Padded(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

struct ShmTransport::FrameHeader {
  uint64_t tag;
  uint32_t bytes;
  FrameKind kind;
};

ShmTransport::ShmTransport(std::shared_ptr<ShmSegment> segment, int local_rank,
                           const std::vector<Peer>& peers)
    : segment_(std::move(segment)), local_rank_(local_rank) {
  static_assert(sizeof(FrameHeader) == kAlign);
  for (size_t i = 0; i < peers.size(); ++i) {
    if (static_cast<int>(i) == local_rank) continue;
    Link& link = links_.emplace_back();
    link.rank = peers[i].rank;
    link.local = static_cast<int>(i);
    // Where the system does not tell of processes, only peers that leave or give up are noticed.
    if (peers[i].pid != getpid()) {
      link.pidfd = static_cast<int>(syscall(SYS_pidfd_open, peers[i].pid, 0));
      link.gone = link.pidfd < 0 && errno == ESRCH;
    }
    link_of_[link.rank] = static_cast<int>(links_.size()) - 1;
  }
}

ShmTransport::~ShmTransport() {
  RankState present = RankState::kPresent;
  segment_->slot(local_rank_).state.compare_exchange_strong(present, RankState::kLeft);
  for (const Link& link : links_) {
    if (link.pidfd >= 0) close(link.pidfd);
  }
}

ShmTransport::Link& ShmTransport::LinkTo(int peer) {
  const auto found = link_of_.find(peer);
  CADRE_CHECK(found != link_of_.end(), "rank {} is not on this host", peer);
  return links_[found->second];
}

void ShmTransport::Send(int peer, uint64_t tag, std::span<const std::byte> data,
                        Transfer* transfer) {
  Link& link = LinkTo(peer);
  const Outgoing message = {tag, data, transfer};
  if (data.size() <= kEagerBytes) {
    link.queue.push_back(message);
    Flush(link);
  } else if (link.cleared_early.erase(tag) != 0) {
    link.streams.push_back(message);
    Flush(link);
  } else {
    CADRE_CHECK(link.uncleared.emplace(tag, message).second, "tag {:x} is in flight twice", tag);
  }
}

void ShmTransport::Receive(int peer, uint64_t tag, std::span<std::byte> buffer,
                           Transfer* transfer) {
  Link& link = LinkTo(peer);
  if (const auto found = link.unexpected.find(tag); found != link.unexpected.end()) {
    if (found->second.size() == buffer.size()) {
      std::ranges::copy(found->second, buffer.begin());
      transfer->done = true;
    } else {
      link.wrong_size = true;
    }
    link.unexpected_bytes -= found->second.size();
    link.unexpected.erase(found);
    return;
  }
  CADRE_CHECK(link.posted.emplace(tag, Incoming{buffer, transfer}).second,
              "tag {:x} is awaited twice", tag);
  if (buffer.size() <= kEagerBytes) return;
  link.queue.push_back({tag, {}, nullptr});
  Flush(link);
}

// Whether there was space for the frame.
bool ShmTransport::Push(Link& link, const FrameHeader& header, std::span<const std::byte> payload) {
  ShmRingHeader& ring = segment_->ring(local_rank_, link.local);
  std::byte* data = segment_->ring_data(local_rank_, link.local);
  const size_t capacity = segment_->ring_bytes(), mask = capacity - 1;
  const size_t bytes = sizeof(header) + Padded(payload.size());
  const uint64_t written = ring.written.load(std::memory_order_relaxed);
  if (capacity - (written - ring.read.load(std::memory_order_acquire)) < bytes) {
    ring.writer_waits.store(1);
    if (capacity - (written - ring.read.load()) < bytes) return false;
    ring.writer_waits.store(0);
  }
  // Headers never wrap: frames start and end on their size.
  std::memcpy(data + (written & mask), &header, sizeof(header));
  const size_t begin = (written + sizeof(header)) & mask;
  const size_t first = std::min(payload.size(), capacity - begin);
  if (first > 0) std::memcpy(data + begin, payload.data(), first);
  if (payload.size() > first) std::memcpy(data, payload.data() + first, payload.size() - first);
  ring.written.store(written + bytes, std::memory_order_release);
  Doorbell(&segment_->slot(link.local).doorbell).Ring();
  return true;
}

void ShmTransport::Flush(Link& link) {
  while (!link.queue.empty()) {
    const Outgoing& next = link.queue.front();
    const bool clearance = next.transfer == nullptr;
    const FrameHeader header = {next.tag, static_cast<uint32_t>(next.data.size()),
                                clearance ? FrameKind::kClear : FrameKind::kWhole};
    if (!Push(link, header, next.data)) return;
    if (!clearance) next.transfer->done = true;
    link.queue.pop_front();
  }
  while (!link.streams.empty()) {
    Outgoing& next = link.streams.front();
    const size_t bytes =
        std::min({kFragmentBytes, segment_->ring_bytes() / 4, next.data.size() - next.sent});
    const FrameHeader header = {next.tag, static_cast<uint32_t>(bytes), FrameKind::kFragment};
    if (!Push(link, header, next.data.subspan(next.sent, bytes))) return;
    next.sent += bytes;
    if (next.sent < next.data.size()) continue;
    next.transfer->done = true;
    link.streams.pop_front();
  }
}

void ShmTransport::CopyOut(const Link& link, uint64_t at, std::span<std::byte> into) const {
  const std::byte* data = segment_->ring_data(link.local, local_rank_);
  const size_t capacity = segment_->ring_bytes(), begin = at & (capacity - 1);
  const size_t first = std::min(into.size(), capacity - begin);
  if (first > 0) std::memcpy(into.data(), data + begin, first);
  if (into.size() > first) std::memcpy(into.data() + first, data, into.size() - first);
}

std::optional<PeerLoss> ShmTransport::Drain(Link& link) {
  ShmRingHeader& ring = segment_->ring(link.local, local_rank_);
  const std::byte* data = segment_->ring_data(link.local, local_rank_);
  const size_t capacity = segment_->ring_bytes();
  uint64_t read = ring.read.load(std::memory_order_relaxed);
  uint64_t written = ring.written.load(std::memory_order_acquire);
  while (read != written) {
    FrameHeader header;
    std::memcpy(&header, data + (read & (capacity - 1)), sizeof(header));
    const size_t bytes = sizeof(header) + Padded(header.bytes);
    if (written - read > capacity || header.bytes > capacity || bytes > written - read) {
      return PeerLoss{link.rank, "it wrote what is no message into shared memory"};
    }
    if (auto loss = Take(link, header, read + sizeof(header))) return loss;
    read += bytes;
    ring.read.store(read);
    if (ring.writer_waits.load() != 0 && ring.writer_waits.exchange(0) != 0) {
      Doorbell(&segment_->slot(link.local).doorbell).Ring();
    }
    if (read == written) written = ring.written.load(std::memory_order_acquire);
  }
  return std::nullopt;
}

std::optional<PeerLoss> ShmTransport::Take(Link& link, const FrameHeader& header, uint64_t at) {
  switch (header.kind) {
    case FrameKind::kClear: {
      const auto found = link.uncleared.find(header.tag);
      if (found == link.uncleared.end()) {
        if (link.cleared_early.size() == kMaxEarly) {
          return PeerLoss{link.rank, "it asked for more than there is"};
        }
        link.cleared_early.emplace(header.tag, true);
      } else {
        link.streams.push_back(found->second);
        link.uncleared.erase(found);
      }
      return std::nullopt;
    }
    case FrameKind::kWhole:
    case FrameKind::kFragment:
      return TakeData(link, header, at);
  }
  return PeerLoss{link.rank, "it wrote a message of an unknown kind into shared memory"};
}

std::optional<PeerLoss> ShmTransport::TakeData(Link& link, const FrameHeader& header, uint64_t at) {
  const auto found = link.posted.find(header.tag);
  if (found == link.posted.end()) {
    link.unexpected_bytes += header.bytes;
    if (header.kind == FrameKind::kFragment || link.unexpected_bytes > kMaxUnexpectedBytes ||
        link.unexpected.size() == kMaxEarly || link.unexpected.contains(header.tag)) {
      return PeerLoss{link.rank, "it sent more than was asked for"};
    }
    auto& kept = link.unexpected[header.tag];
    kept.resize(header.bytes);
    CopyOut(link, at, kept);
    return std::nullopt;
  }
  Incoming& incoming = found->second;
  const size_t left = incoming.buffer.size() - incoming.received;
  if (header.bytes > left || (header.kind == FrameKind::kWhole && header.bytes != left)) {
    return WrongSize(link);
  }
  CopyOut(link, at, incoming.buffer.subspan(incoming.received, header.bytes));
  incoming.received += header.bytes;
  if (incoming.received == incoming.buffer.size()) {
    incoming.transfer->done = true;
    link.posted.erase(found);
  }
  return std::nullopt;
}

PeerLoss ShmTransport::WrongSize(const Link& link) {
  return {link.rank, "it sent a message of another size than this rank expects"};
}

std::optional<PeerLoss> ShmTransport::Progress() {
  if (segment_->gave_up().load(std::memory_order_acquire) != 0) {
    if (auto loss = Announced()) return loss;
  }
  for (Link& link : links_) {
    if (auto loss = Drain(link)) return loss;
    if (link.wrong_size) return WrongSize(link);
    Flush(link);
  }
  return std::nullopt;
}

std::optional<PeerLoss> ShmTransport::Announced() const {
  for (const Link& link : links_) {
    const ShmRankSlot& slot = segment_->slot(link.local);
    if (slot.state.load() != RankState::kGaveUp) continue;
    return PeerLoss{.peer = slot.culprit,
                    .reason = std::string(slot.reason, strnlen(slot.reason, sizeof(slot.reason))),
                    .announced = true};
  }
  return std::nullopt;
}

void ShmTransport::Watch(int peer, int change) { LinkTo(peer).watches += change; }

bool ShmTransport::Busy(const Link& link) const {
  return !link.queue.empty() || !link.streams.empty() || !link.uncleared.empty() ||
         !link.posted.empty();
}

std::optional<PeerLoss> ShmTransport::CheckPeers() {
  for (Link& link : links_) {
    const bool left = segment_->slot(link.local).state.load() == RankState::kLeft;
    if (link.pidfd >= 0) {
      pollfd process = {.fd = link.pidfd, .events = POLLIN};
      link.gone = poll(&process, 1, 0) == 1;
    }
    if (!link.gone && !left) continue;
    // What it wrote before it went is still good.
    if (auto loss = Drain(link)) return loss;
    if (!Busy(link) && (left || link.watches == 0)) continue;
    return PeerLoss{link.rank, link.gone && !left ? "its process is gone" : "it has left"};
  }
  return std::nullopt;
}

void ShmTransport::GiveUp(const PeerLoss& loss) {
  ShmRankSlot& slot = segment_->slot(local_rank_);
  if (slot.state.load() != RankState::kPresent) return;
  slot.culprit = loss.peer;
  std::strncpy(slot.reason, loss.reason.c_str(), sizeof(slot.reason) - 1);
  slot.state.store(RankState::kGaveUp);
  segment_->gave_up().fetch_add(1);
  for (const Link& link : links_) {
    Doorbell doorbell(&segment_->slot(link.local).doorbell);
    doorbell.Ring(Doorbell::kWakesAnybody);
  }
}

}  // namespace cadre
