// What a collective is in calls of NCCL. Apart from NCCL itself, so that every build tests it.
//
// Tensors are checked here, as CpuCommunicator checks them: what does not fit is a broken
// invariant. Parts without elements are left out, so both ends must agree on the sizes. Calls point
// into the tensors, which outlive them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/dtype.h"
#include "core/tensor.h"
#include "parallel/communicator.h"

namespace cadre {

struct NcclCall {
  enum class Kind : uint8_t {
    kAllReduce,
    kReduceScatter,  // count: of one part
    kReduce,         // to rank `peer`; `to` is null elsewhere
    kAllGather,      // count: of one part
    kBroadcast,      // from rank `peer`
    kSend,           // to rank `peer`
    kReceive,        // from rank `peer`
    kCopy,           // on this device
    kMeet,           // a sum over nothing that anybody reads
  };
  Kind kind;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  size_t count = 0;  // elements
  DType dtype = DType::kF32;
  ReduceOp op = ReduceOp::kSum;
  int peer = -1;  // in the group

  bool operator==(const NcclCall&) const = default;
};
// Of one operation, which NCCL runs as one.
using NcclCalls = std::vector<NcclCall>;

// A rank's place in its group.
struct NcclPlace {
  int rank = 0, size = 1;
};

NcclCalls AllReduceCalls(const Tensor& buffer, ReduceOp op);
NcclCalls ReduceScatterCalls(NcclPlace place, const Tensor& input, const Tensor& output,
                             ReduceOp op);
// Uneven parts are one reduction to each rank: NCCL scatters only even ones.
NcclCalls ReduceScatterVCalls(NcclPlace place, const Tensor& input, const Tensor& output,
                              std::span<const int64_t> rows, ReduceOp op);
NcclCalls AllGatherCalls(NcclPlace place, const Tensor& input, const Tensor& output);
// Uneven parts are one broadcast from each rank.
NcclCalls AllGatherVCalls(NcclPlace place, const Tensor& input, const Tensor& output,
                          std::span<const int64_t> rows);
NcclCalls AllToAllCalls(NcclPlace place, const Tensor& input, const Tensor& output);
NcclCalls AllToAllVCalls(NcclPlace place, const Tensor& input, std::span<const int64_t> send_rows,
                         const Tensor& output, std::span<const int64_t> receive_rows);
NcclCalls BroadcastCalls(NcclPlace place, const Tensor& buffer, int root);
NcclCalls MeetCalls();
// Between two ranks, of which the sender is rank 0.
NcclCalls SendCalls(const Tensor& tensor);
NcclCalls ReceiveCalls(const Tensor& tensor);

// NCCL's numbers: ncclDataType_t and ncclRedOp_t. Where nccl.h is, they are checked against it.
constexpr int NcclTypeOf(DType dtype) {
  switch (dtype) {
    case DType::kI8:
      return 0;
    case DType::kU8:
      return 1;
    case DType::kI32:
      return 2;
    case DType::kI64:
      return 4;
    case DType::kF16:
      return 6;
    case DType::kF32:
      return 7;
    case DType::kF64:
      return 8;
    case DType::kBF16:
      return 9;
  }
  return -1;
}

constexpr int NcclReductionOf(ReduceOp op) {
  switch (op) {
    case ReduceOp::kSum:
      return 0;
    case ReduceOp::kMax:
      return 2;
    case ReduceOp::kAverage:
      return 4;
  }
  return -1;
}

}  // namespace cadre
