// The algorithms of the CPU communicator, written once over messages.
//
// All-reduce is a reduce-scatter and an all-gather. Reduce-scatter exchanges raw parts pairwise and
// sums them locally in rank order, so that no order of arrival and no cut into pieces can change a
// bit. Small all-reduces exchange everything with everybody and sum the same way: one latency
// instead of two. Every rank sends and receives 2(n-1)/n of the data, as a ring does
// (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations",
// 2009).
//
// The coroutines keep references: messages and buffers outlive them. Buffers do not overlap but
// where it says so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "parallel/collective.h"
#include "parallel/communicator.h"

namespace cadre {

struct Reduction {
  DType dtype;
  ReduceOp op;
};

// In place over `numel` elements.
Collective AllReduce(const Messages& messages, Reduction reduction, std::byte* buffer,
                     int64_t numel);

// input: one part for each rank, of parts[r] elements. output may be this rank's part of input.
Collective ReduceScatter(const Messages& messages, Reduction reduction, const std::byte* input,
                         std::byte* output, std::vector<int64_t> parts);

// What messages land in while a few reductions over n ranks are in flight.
int64_t StagingBytes(int n);

// A reduction's pieces are told apart by 16 bits.
inline constexpr int64_t kMaxPieces = 1 << 16;
// Elements of `width` bytes that one piece of a reduction over n ranks has: the same, whatever its
// size, but for one whose largest part would take more than kMaxPieces.
int64_t SegmentNumel(int n, size_t width, int64_t largest_part);

// One contiguous piece for or from each rank of the group.
using Pieces = std::vector<std::span<std::byte>>;
using ConstPieces = std::vector<std::span<const std::byte>>;

// send[r] goes to rank r, whose send[me] lands in receive[r]; the own piece is copied. Empty pieces
// send nothing, so both ends must agree on the sizes.
Collective Exchange(const Messages& messages, ConstPieces send, Pieces receive);

// In place; root's bytes to all.
Collective Broadcast(const Messages& messages, std::span<std::byte> buffer, int root);

Collective SendTo(const Messages& messages, int to, std::span<const std::byte> data);
Collective ReceiveFrom(const Messages& messages, int from, std::span<std::byte> buffer);

// Nobody is through before all are in.
Collective Barrier(const Messages& messages);

}  // namespace cadre
