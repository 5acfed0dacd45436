#include "parallel/collectives.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>

#include "parallel/reduce.h"
#include "parallel/shard.h"

namespace cadre {
namespace {

// What a rank receives from each of n - 1 peers before it sums; two such segments are in flight,
// in 4 MiB where the group is large.
int64_t SegmentBytes(int n) {
  constexpr int64_t kAll = 4 << 20, kLeast = 32 << 10, kMost = 128 << 10;
  return static_cast<int64_t>(
      std::bit_floor(static_cast<uint64_t>(std::clamp(kAll / (2 * n), kLeast, kMost))));
}
// An all-reduce of at most this many bytes goes out whole to everybody.
constexpr int64_t kWholeBytes = 8 << 10;

std::span<const std::byte> Bytes(const std::byte* data, int64_t begin, int64_t numel,
                                 size_t width) {
  return {data + static_cast<size_t>(begin) * width, static_cast<size_t>(numel) * width};
}
std::span<std::byte> Bytes(std::byte* data, int64_t begin, int64_t numel, size_t width) {
  return {data + static_cast<size_t>(begin) * width, static_cast<size_t>(numel) * width};
}

int64_t Largest(const std::vector<Shard>& parts) {
  int64_t most = 0;
  for (const Shard& part : parts) most = std::max(most, part.numel);
  return most;
}

// A window of the part that a segment covers.
Shard Window(const Shard& part, int64_t segment, int64_t segment_numel) {
  const int64_t offset = std::min(part.numel, segment * segment_numel);
  return {part.begin + offset, std::min(segment_numel, part.numel - offset)};
}

}  // namespace

int64_t StagingBytes(int n) {
  constexpr int64_t kInFlight = 4;  // a backward pass of many buckets was not seen to have more
  return kInFlight * 2 * n * SegmentBytes(n);
}

int64_t SegmentNumel(int n, size_t width, int64_t largest_part) {
  int64_t numel = SegmentBytes(n) / static_cast<int64_t>(width);
  // An all-reduce sends each segment twice.
  while (2 * ((largest_part + numel - 1) / numel) > kMaxPieces) numel *= 2;
  return numel;
}

namespace {

Collective AllReduceWhole(const Messages& messages, Reduction reduction, std::byte* buffer,
                          int64_t numel) {
  const int n = messages.size();
  const size_t bytes = static_cast<size_t>(numel) * SizeOf(reduction.dtype);
  StagingPool::Block staging(messages.staging, bytes * static_cast<size_t>(n));
  std::vector<const std::byte*> sources(n);
  TransferBatch batch(messages);
  for (int i = 1; i < n; ++i) {
    batch.Send((messages.rank + i) % n, 0, {buffer, bytes});
  }
  for (int r = 0; r < n; ++r) {
    sources[r] = r == messages.rank ? buffer : staging.data() + bytes * static_cast<size_t>(r);
    if (r != messages.rank)
      batch.Receive(r, 0, {staging.data() + bytes * static_cast<size_t>(r), bytes});
  }
  co_await batch;
  ReduceInRankOrder(reduction.dtype, reduction.op, sources, numel, buffer);
}

// The reduce-scatter half, a segment at a time: raw windows of this rank's part from everybody.
class Segments {
 public:
  // parts[r] is rank r's part of the input.
  Segments(const Messages& messages, Reduction reduction, const std::byte* input,
           const std::vector<Shard>& parts)
      : messages_(messages),
        reduction_(reduction),
        input_(input),
        width_(SizeOf(reduction.dtype)),
        parts_(parts),
        segment_numel_(SegmentNumel(messages.size(), width_, Largest(parts))),
        slot_bytes_(std::bit_ceil(Size(Window(parts[messages.rank], 0, segment_numel_)))),
        staging_(messages.staging, 2 * static_cast<size_t>(messages.size()) * slot_bytes_) {}

  int64_t segment_numel() const { return segment_numel_; }

  void Post(TransferBatch& batch, int64_t s) {
    const int n = messages_.size();
    const Shard mine = Window(parts_[messages_.rank], s, segment_numel());
    const auto piece = static_cast<uint32_t>(s);
    for (int i = 1; i < n; ++i) {
      const int peer = (messages_.rank + n - i) % n;
      if (mine.numel > 0) batch.Receive(peer, piece, {Place(s, peer), Size(mine)});
    }
    for (int i = 1; i < n; ++i) {
      const int peer = (messages_.rank + i) % n;
      const Shard theirs = Window(parts_[peer], s, segment_numel());
      if (theirs.numel > 0)
        batch.Send(peer, piece, Bytes(input_, theirs.begin, theirs.numel, width_));
    }
  }

  void Sum(int64_t s, std::byte* out) {
    const Shard mine = Window(parts_[messages_.rank], s, segment_numel());
    if (mine.numel == 0) return;
    std::vector<const std::byte*> sources(messages_.peers.size());
    for (int r = 0; r < messages_.size(); ++r) {
      sources[r] =
          r == messages_.rank ? input_ + static_cast<size_t>(mine.begin) * width_ : Place(s, r);
    }
    ReduceInRankOrder(reduction_.dtype, reduction_.op, sources, mine.numel, out);
  }

 private:
  size_t Size(const Shard& part) const { return static_cast<size_t>(part.numel) * width_; }
  std::byte* Place(int64_t s, int peer) const {
    const auto slot =
        static_cast<size_t>(s % 2) * messages_.peers.size() + static_cast<size_t>(peer);
    return staging_.data() + slot * slot_bytes_;
  }

  const Messages& messages_;
  const Reduction reduction_;
  const std::byte* input_;
  const size_t width_;
  const std::vector<Shard>& parts_;
  const int64_t segment_numel_;
  const size_t slot_bytes_;
  StagingPool::Block staging_;
};

int64_t SegmentCount(const std::vector<Shard>& parts, int64_t segment_numel) {
  return (Largest(parts) + segment_numel - 1) / segment_numel;
}

Collective AllReduceInParts(const Messages& messages, Reduction reduction, std::byte* buffer,
                            int64_t numel) {
  const int n = messages.size();
  const size_t width = SizeOf(reduction.dtype);
  std::vector<Shard> parts(n);
  for (int r = 0; r < n; ++r) parts[r] = ShardOf(numel, n, r);
  Segments segments(messages, reduction, buffer, parts);
  const int64_t count = SegmentCount(parts, segments.segment_numel());
  std::deque<TransferBatch> scatter;
  TransferBatch gather(messages);
  segments.Post(scatter.emplace_back(messages), 0);
  for (int64_t s = 0; s < count; ++s) {
    if (s + 1 < count) segments.Post(scatter.emplace_back(messages), s + 1);
    co_await scatter.front();
    scatter.pop_front();
    const Shard mine = Window(parts[messages.rank], s, segments.segment_numel());
    segments.Sum(s, buffer + static_cast<size_t>(mine.begin) * width);
    // What a peer sends of its part has been summed from this rank's copy, so that may go.
    const auto piece = static_cast<uint32_t>(count + s);
    for (int i = 1; i < n; ++i) {
      const int to = (messages.rank + i) % n, from = (messages.rank + n - i) % n;
      const Shard theirs = Window(parts[from], s, segments.segment_numel());
      if (theirs.numel > 0)
        gather.Receive(from, piece, Bytes(buffer, theirs.begin, theirs.numel, width));
      if (mine.numel > 0) gather.Send(to, piece, Bytes(buffer, mine.begin, mine.numel, width));
    }
  }
  co_await gather;
}

Collective Nothing() { co_return; }

}  // namespace

Collective AllReduce(const Messages& messages, Reduction reduction, std::byte* buffer,
                     int64_t numel) {
  if (messages.size() == 1 || numel == 0) return Nothing();
  const int64_t bytes = numel * static_cast<int64_t>(SizeOf(reduction.dtype));
  return bytes <= kWholeBytes ? AllReduceWhole(messages, reduction, buffer, numel)
                              : AllReduceInParts(messages, reduction, buffer, numel);
}

Collective ReduceScatter(const Messages& messages, Reduction reduction, const std::byte* input,
                         std::byte* output, std::vector<int64_t> numels) {
  const size_t width = SizeOf(reduction.dtype);
  std::vector<Shard> parts;
  int64_t begin = 0;
  for (const int64_t numel : numels) {
    parts.push_back({begin, numel});
    begin += numel;
  }
  Segments segments(messages, reduction, input, parts);
  const int64_t count = SegmentCount(parts, segments.segment_numel());
  std::deque<TransferBatch> batches;
  if (count > 0) segments.Post(batches.emplace_back(messages), 0);
  for (int64_t s = 0; s < count; ++s) {
    if (s + 1 < count) segments.Post(batches.emplace_back(messages), s + 1);
    co_await batches.front();
    batches.pop_front();
    segments.Sum(s, output + static_cast<size_t>(s * segments.segment_numel()) * width);
  }
}

Collective Exchange(const Messages& messages, ConstPieces send, Pieces receive) {
  const int n = messages.size(), me = messages.rank;
  TransferBatch batch(messages);
  for (int i = 1; i < n; ++i) {
    const int from = (me + n - i) % n;
    if (!receive[from].empty()) batch.Receive(from, 0, receive[from]);
  }
  for (int i = 1; i < n; ++i) {
    const int to = (me + i) % n;
    if (!send[to].empty()) batch.Send(to, 0, send[to]);
  }
  if (!send[me].empty() && send[me].data() != receive[me].data()) {
    std::memcpy(receive[me].data(), send[me].data(), send[me].size());
  }
  co_await batch;
}

Collective Broadcast(const Messages& messages, std::span<std::byte> buffer, int root) {
  // A binomial tree over ranks counted from the root: log2(n) latencies, and no rank sends more
  // than log2(n) copies.
  const int n = messages.size();
  const int place = (messages.rank + n - root) % n;
  int reach = 1;
  while (reach <= place) reach *= 2;
  if (place > 0 && !buffer.empty()) {
    TransferBatch from_parent(messages);
    from_parent.Receive((place - reach / 2 + root) % n, 0, buffer);
    co_await from_parent;
  }
  TransferBatch to_children(messages);
  for (; place + reach < n; reach *= 2) {
    if (!buffer.empty()) to_children.Send((place + reach + root) % n, 0, buffer);
  }
  co_await to_children;
}

Collective SendTo(const Messages& messages, int to, std::span<const std::byte> data) {
  TransferBatch batch(messages);
  batch.Send(to, 0, data);
  co_await batch;
}

Collective ReceiveFrom(const Messages& messages, int from, std::span<std::byte> buffer) {
  TransferBatch batch(messages);
  batch.Receive(from, 0, buffer);
  co_await batch;
}

Collective Barrier(const Messages& messages) {
  // Dissemination: in round k each rank tells the one 2^k on (Hensgen, Finkel and Manber, 1988).
  const int n = messages.size();
  uint32_t round = 0;
  for (int step = 1; step < n; step *= 2, ++round) {
    TransferBatch batch(messages);
    batch.Send((messages.rank + step) % n, round, {});
    batch.Receive((messages.rank + n - step) % n, round, {});
    co_await batch;
  }
}

}  // namespace cadre
