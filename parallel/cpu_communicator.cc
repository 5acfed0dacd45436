#include "parallel/cpu_communicator.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "parallel/reduce.h"

namespace cadre {
namespace {

std::span<std::byte> Bytes(const Tensor& tensor) { return {tensor.raw(), tensor.bytes()}; }

// Consecutive runs of rows of dimension 0.
Pieces CutRows(const Tensor& tensor, std::span<const int64_t> rows) {
  const int64_t all = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  CADRE_CHECK(tensor.shape().rank() > 0 && tensor.dim(0) == all, "{} for {} rows",
              tensor.shape().ToString(), all);
  const size_t row = all == 0 ? 0 : tensor.bytes() / static_cast<size_t>(all);
  Pieces pieces;
  std::byte* next = tensor.raw();
  for (const int64_t count : rows) {
    CADRE_CHECK(count >= 0);
    pieces.emplace_back(next, static_cast<size_t>(count) * row);
    next += pieces.back().size();
  }
  return pieces;
}

ConstPieces Const(const Pieces& pieces) { return {pieces.begin(), pieces.end()}; }

// "0, 2, 4, 6", "0, 8, 16, 24, ... (64)".
std::string ShortList(const std::vector<int>& ranks) {
  constexpr size_t kShown = 16;
  std::string text = fmt::format(
      "{}", fmt::join(ranks.begin(),
                      ranks.begin() + static_cast<int64_t>(std::min(kShown, ranks.size())), ", "));
  if (ranks.size() > kShown) text += fmt::format(", ... ({})", ranks.size());
  return text;
}

void CheckSameType(const Tensor& a, const Tensor& b) {
  CADRE_CHECK(a.dtype() == b.dtype(), "{} and {}", Name(a.dtype()), Name(b.dtype()));
}

}  // namespace

std::string ToString(const OpLabel& label) {
  return label.layer < 0 ? std::string(label.what)
                         : fmt::format("layer {} {}", label.layer, label.what);
}

CpuCommunicator::CpuCommunicator(ProgressEngine& engine, Options options)
    : engine_(engine),
      group_(std::make_shared<const Group>(std::move(options))),
      sent_(group_->options.peers.size()),
      received_(group_->options.peers.size()) {}

CpuCommunicator::Group::Group(Options from) : options(std::move(from)) {
  CADRE_CHECK(options.number % 2 == 0);
  for (const Messages::Peer& peer : options.peers) ranks.push_back(peer.rank);
  ranks_text = ShortList(ranks);
}

WorkPtr CpuCommunicator::StartWith(Call call, uint32_t communicator, uint32_t sequence) {
  const Options& options = group_->options;
  return engine_.Start(
      {.info = {.group = options.name,
                .operation = call.operation,
                .label = ToString(call.label),
                .layer = call.label.layer,
                .bucket = call.label.bucket,
                .sequence = sequence,
                .bytes = call.bytes,
                .peer = call.peer,
                .ranks = group_->ranks_text},
       .messages = {options.peers, options.rank, communicator, sequence, engine_.staging()},
       .group = group_,
       .pinned = std::move(call.tensors),
       .timeout = options.timeout,
       .begin = std::move(call.begin)});
}

WorkPtr CpuCommunicator::Start(Call call) {
  return StartWith(std::move(call), group_->options.number, sequence_++);
}

// Messages between two ranks have a counter of their own, which collectives do not move.
WorkPtr CpuCommunicator::StartPointToPoint(Call call, int peer, uint32_t* sequence) {
  call.peer = ranks()[static_cast<size_t>(peer)];
  return StartWith(std::move(call), group_->options.number + 1, (*sequence)++);
}

WorkPtr CpuCommunicator::AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) {
  CheckReduction(buffer.dtype(), op);
  return Start({"all_reduce",
                label,
                buffer.bytes(),
                {buffer},
                [reduction = Reduction{buffer.dtype(), op}, data = buffer.raw(),
                 numel = buffer.numel()](const Messages& messages) {
                  return cadre::AllReduce(messages, reduction, data, numel);
                }});
}

WorkPtr CpuCommunicator::ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                                       const OpLabel& label) {
  CADRE_CHECK(input.numel() == output.numel() * size(), "{} into {} parts of {}",
              input.shape().ToString(), size(), output.shape().ToString());
  return ReduceParts({"reduce_scatter", label, input.bytes(), {input, output}, nullptr},
                     std::vector<int64_t>(static_cast<size_t>(size()), output.numel()), op);
}

WorkPtr CpuCommunicator::ReduceScatterV(const Tensor& input, const Tensor& output,
                                        std::span<const int64_t> rows, ReduceOp op,
                                        const OpLabel& label) {
  CADRE_CHECK(static_cast<int>(rows.size()) == size());
  std::vector<int64_t> parts;
  for (const std::span<std::byte>& piece : CutRows(input, rows)) {
    parts.push_back(static_cast<int64_t>(piece.size() / SizeOf(input.dtype())));
  }
  CADRE_CHECK(output.numel() == parts[static_cast<size_t>(rank())], "{} for {} elements",
              output.shape().ToString(), parts[static_cast<size_t>(rank())]);
  return ReduceParts({"reduce_scatter_v", label, input.bytes(), {input, output}, nullptr},
                     std::move(parts), op);
}

// tensors: input, output.
WorkPtr CpuCommunicator::ReduceParts(Call call, std::vector<int64_t> parts, ReduceOp op) {
  const Tensor &input = call.tensors[0], &output = call.tensors[1];
  CheckSameType(input, output);
  CheckReduction(input.dtype(), op);
  call.begin = [reduction = Reduction{input.dtype(), op}, from = input.raw(), to = output.raw(),
                parts = std::move(parts)](const Messages& messages) {
    return cadre::ReduceScatter(messages, reduction, from, to, parts);
  };
  return Start(std::move(call));
}

WorkPtr CpuCommunicator::StartExchange(Call call, ConstPieces send, Pieces receive) {
  call.begin = [send = std::move(send), receive = std::move(receive)](const Messages& messages) {
    return Exchange(messages, send, receive);
  };
  return Start(std::move(call));
}

WorkPtr CpuCommunicator::AllGather(const Tensor& input, const Tensor& output,
                                   const OpLabel& label) {
  CheckSameType(input, output);
  CADRE_CHECK(output.numel() == input.numel() * size(), "{} parts of {} into {}", size(),
              input.shape().ToString(), output.shape().ToString());
  Pieces receive;
  for (int r = 0; r < size(); ++r) {
    receive.push_back(Bytes(output).subspan(static_cast<size_t>(r) * input.bytes(), input.bytes()));
  }
  return StartExchange({"all_gather", label, output.bytes(), {input, output}, nullptr},
                       ConstPieces(static_cast<size_t>(size()), Bytes(input)), std::move(receive));
}

WorkPtr CpuCommunicator::AllGatherV(const Tensor& input, const Tensor& output,
                                    std::span<const int64_t> rows, const OpLabel& label) {
  CheckSameType(input, output);
  CADRE_CHECK(static_cast<int>(rows.size()) == size());
  Pieces receive = CutRows(output, rows);
  CADRE_CHECK(receive[static_cast<size_t>(rank())].size() == input.bytes(), "{} for {} rows",
              input.shape().ToString(), rows[static_cast<size_t>(rank())]);
  return StartExchange({"all_gather_v", label, output.bytes(), {input, output}, nullptr},
                       ConstPieces(static_cast<size_t>(size()), Bytes(input)), std::move(receive));
}

WorkPtr CpuCommunicator::AllToAll(const Tensor& input, const Tensor& output, const OpLabel& label) {
  CADRE_CHECK(input.shape() == output.shape() && input.dim(0) % size() == 0, "{} and {} over {}",
              input.shape().ToString(), output.shape().ToString(), size());
  const std::vector<int64_t> rows(static_cast<size_t>(size()), input.dim(0) / size());
  CheckSameType(input, output);
  return StartExchange({"all_to_all", label, input.bytes(), {input, output}, nullptr},
                       Const(CutRows(input, rows)), CutRows(output, rows));
}

WorkPtr CpuCommunicator::AllToAllV(const Tensor& input, std::span<const int64_t> send_rows,
                                   const Tensor& output, std::span<const int64_t> receive_rows,
                                   const OpLabel& label) {
  CheckSameType(input, output);
  CADRE_CHECK(static_cast<int>(send_rows.size()) == size() &&
              static_cast<int>(receive_rows.size()) == size());
  Pieces receive = CutRows(output, receive_rows);
  ConstPieces send = Const(CutRows(input, send_rows));
  const auto me = static_cast<size_t>(rank());
  CADRE_CHECK(send[me].size() == receive[me].size(), "{} bytes to itself, {} from itself",
              send[me].size(), receive[me].size());
  return StartExchange({"all_to_all_v", label, input.bytes(), {input, output}, nullptr},
                       std::move(send), std::move(receive));
}

WorkPtr CpuCommunicator::Broadcast(const Tensor& buffer, int root, const OpLabel& label) {
  CADRE_CHECK(root >= 0 && root < size(), "root {} of {}", root, size());
  return Start({"broadcast",
                label,
                buffer.bytes(),
                {buffer},
                [bytes = Bytes(buffer), root](const Messages& messages) {
                  return cadre::Broadcast(messages, bytes, root);
                }});
}

WorkPtr CpuCommunicator::Send(const Tensor& tensor, int to, const OpLabel& label) {
  CADRE_CHECK(to >= 0 && to < size() && to != rank(), "to {} of {}", to, size());
  return StartPointToPoint({"send",
                            label,
                            tensor.bytes(),
                            {tensor},
                            [bytes = Bytes(tensor), to](const Messages& messages) {
                              return SendTo(messages, to, bytes);
                            }},
                           to, &sent_[static_cast<size_t>(to)]);
}

WorkPtr CpuCommunicator::Receive(const Tensor& tensor, int from, const OpLabel& label) {
  CADRE_CHECK(from >= 0 && from < size() && from != rank(), "from {} of {}", from, size());
  return StartPointToPoint({"receive",
                            label,
                            tensor.bytes(),
                            {tensor},
                            [bytes = Bytes(tensor), from](const Messages& messages) {
                              return ReceiveFrom(messages, from, bytes);
                            }},
                           from, &received_[static_cast<size_t>(from)]);
}

WorkPtr CpuCommunicator::Barrier(const OpLabel& label) {
  return Start(
      {"barrier", label, 0, {}, [](const Messages& messages) { return cadre::Barrier(messages); }});
}

}  // namespace cadre
