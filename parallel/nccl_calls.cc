#include "parallel/nccl_calls.h"

#include <algorithm>
#include <numeric>

#include "parallel/reduce.h"

namespace cadre {
namespace {

using Kind = NcclCall::Kind;

void CheckPair(const Tensor& input, const Tensor& output) {
  CADRE_CHECK(input.dtype() == output.dtype(), "{} and {}", Name(input.dtype()),
              Name(output.dtype()));
}

// A run of a tensor's elements.
struct Part {
  std::byte* data;
  size_t count;
};

// Consecutive runs of rows of dimension 0.
std::vector<Part> CutRows(NcclPlace place, const Tensor& tensor, std::span<const int64_t> rows) {
  CADRE_CHECK(static_cast<int>(rows.size()) == place.size, "{} parts for {} ranks", rows.size(),
              place.size);
  const int64_t all = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  CADRE_CHECK(tensor.shape().rank() > 0 && tensor.dim(0) == all, "{} for {} rows",
              tensor.shape().ToString(), all);
  const int64_t row = all == 0 ? 0 : tensor.numel() / all;
  std::vector<Part> parts;
  std::byte* next = tensor.raw();
  for (const int64_t count : rows) {
    CADRE_CHECK(count >= 0, "{} rows", count);
    parts.push_back({next, static_cast<size_t>(count * row)});
    next += parts.back().count * SizeOf(tensor.dtype());
  }
  return parts;
}

bool Even(std::span<const int64_t> rows) {
  return std::ranges::all_of(rows, [&](int64_t count) { return count == rows[0]; });
}

}  // namespace

NcclCalls AllReduceCalls(const Tensor& buffer, ReduceOp op) {
  CheckReduction(buffer.dtype(), op);
  if (buffer.numel() == 0) return {};
  return {{.kind = Kind::kAllReduce,
           .from = buffer.raw(),
           .to = buffer.raw(),
           .count = static_cast<size_t>(buffer.numel()),
           .dtype = buffer.dtype(),
           .op = op}};
}

NcclCalls ReduceScatterCalls(NcclPlace place, const Tensor& input, const Tensor& output,
                             ReduceOp op) {
  CheckPair(input, output);
  CheckReduction(input.dtype(), op);
  CADRE_CHECK(input.numel() == output.numel() * place.size, "{} into {} parts of {}",
              input.shape().ToString(), place.size, output.shape().ToString());
  if (output.numel() == 0) return {};
  return {{.kind = Kind::kReduceScatter,
           .from = input.raw(),
           .to = output.raw(),
           .count = static_cast<size_t>(output.numel()),
           .dtype = input.dtype(),
           .op = op}};
}

NcclCalls ReduceScatterVCalls(NcclPlace place, const Tensor& input, const Tensor& output,
                              std::span<const int64_t> rows, ReduceOp op) {
  CheckPair(input, output);
  CheckReduction(input.dtype(), op);
  const std::vector<Part> parts = CutRows(place, input, rows);
  const size_t mine = parts[static_cast<size_t>(place.rank)].count;
  CADRE_CHECK(static_cast<size_t>(output.numel()) == mine, "{} for {} elements",
              output.shape().ToString(), mine);
  if (Even(rows)) return ReduceScatterCalls(place, input, output, op);
  NcclCalls calls;
  for (int r = 0; r < place.size; ++r) {
    const Part& part = parts[static_cast<size_t>(r)];
    if (part.count == 0) continue;
    calls.push_back({.kind = Kind::kReduce,
                     .from = part.data,
                     .to = r == place.rank ? output.raw() : nullptr,
                     .count = part.count,
                     .dtype = input.dtype(),
                     .op = op,
                     .peer = r});
  }
  return calls;
}

NcclCalls AllGatherCalls(NcclPlace place, const Tensor& input, const Tensor& output) {
  CheckPair(input, output);
  CADRE_CHECK(output.numel() == input.numel() * place.size, "{} parts of {} into {}", place.size,
              input.shape().ToString(), output.shape().ToString());
  if (input.numel() == 0) return {};
  return {{.kind = Kind::kAllGather,
           .from = input.raw(),
           .to = output.raw(),
           .count = static_cast<size_t>(input.numel()),
           .dtype = input.dtype()}};
}

NcclCalls AllGatherVCalls(NcclPlace place, const Tensor& input, const Tensor& output,
                          std::span<const int64_t> rows) {
  CheckPair(input, output);
  const std::vector<Part> parts = CutRows(place, output, rows);
  const size_t mine = parts[static_cast<size_t>(place.rank)].count;
  CADRE_CHECK(static_cast<size_t>(input.numel()) == mine, "{} for {} elements",
              input.shape().ToString(), mine);
  if (Even(rows)) return AllGatherCalls(place, input, output);
  NcclCalls calls;
  for (int r = 0; r < place.size; ++r) {
    const Part& part = parts[static_cast<size_t>(r)];
    if (part.count == 0) continue;
    calls.push_back({.kind = Kind::kBroadcast,
                     .from = r == place.rank ? input.raw() : part.data,
                     .to = part.data,
                     .count = part.count,
                     .dtype = input.dtype(),
                     .peer = r});
  }
  return calls;
}

NcclCalls AllToAllCalls(NcclPlace place, const Tensor& input, const Tensor& output) {
  CADRE_CHECK(input.shape() == output.shape() && input.dim(0) % place.size == 0,
              "{} and {} over {}", input.shape().ToString(), output.shape().ToString(), place.size);
  const std::vector<int64_t> rows(static_cast<size_t>(place.size), input.dim(0) / place.size);
  return AllToAllVCalls(place, input, rows, output, rows);
}

NcclCalls AllToAllVCalls(NcclPlace place, const Tensor& input, std::span<const int64_t> send_rows,
                         const Tensor& output, std::span<const int64_t> receive_rows) {
  CheckPair(input, output);
  const std::vector<Part> send = CutRows(place, input, send_rows);
  const std::vector<Part> receive = CutRows(place, output, receive_rows);
  const auto me = static_cast<size_t>(place.rank);
  CADRE_CHECK(send[me].count == receive[me].count, "{} elements to itself, {} from itself",
              send[me].count, receive[me].count);
  NcclCalls calls;
  const auto add = [&](NcclCall call) {
    if (call.count == 0) return;
    call.dtype = input.dtype();
    calls.push_back(call);
  };
  add({.kind = Kind::kCopy,
       .from = send[me].data,
       .to = receive[me].data,
       .count = send[me].count});
  for (int r = 0; r < place.size; ++r) {
    const auto i = static_cast<size_t>(r);
    if (i == me) continue;
    add({.kind = Kind::kSend, .from = send[i].data, .count = send[i].count, .peer = r});
    add({.kind = Kind::kReceive, .to = receive[i].data, .count = receive[i].count, .peer = r});
  }
  return calls;
}

NcclCalls BroadcastCalls(NcclPlace place, const Tensor& buffer, int root) {
  CADRE_CHECK(root >= 0 && root < place.size, "root {} of {}", root, place.size);
  if (buffer.numel() == 0) return {};
  return {{.kind = Kind::kBroadcast,
           .from = buffer.raw(),
           .to = buffer.raw(),
           .count = static_cast<size_t>(buffer.numel()),
           .dtype = buffer.dtype(),
           .peer = root}};
}

NcclCalls MeetCalls() { return {{.kind = Kind::kMeet}}; }

NcclCalls SendCalls(const Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {{.kind = Kind::kSend,
           .from = tensor.raw(),
           .count = static_cast<size_t>(tensor.numel()),
           .dtype = tensor.dtype(),
           .peer = 1}};
}

NcclCalls ReceiveCalls(const Tensor& tensor) {
  if (tensor.numel() == 0) return {};
  return {{.kind = Kind::kReceive,
           .to = tensor.raw(),
           .count = static_cast<size_t>(tensor.numel()),
           .dtype = tensor.dtype(),
           .peer = 0}};
}

}  // namespace cadre
