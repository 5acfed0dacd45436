#include "parallel/nccl_communicator.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

// What a coroutine needs to bring its operation to the GPU.
struct Stage {
  std::shared_ptr<NcclQueue> queue;
  NcclQueue::LinkPtr link;
  NcclOperationPtr operation;
};

// For as long as NCCL may wait for them. Not at a failure: then the transports have ended.
void WatchPeers(const Messages& messages, int change) {
  for (const Messages::Peer& peer : messages.peers) {
    if (peer.transport != nullptr) peer.transport->Watch(peer.rank, change);
  }
}

void LaunchIn(TransferBatch& batch, const Stage& stage) {
  batch.Local(
      [&stage](Transfer* transfer) { stage.queue->Launch(stage.link, stage.operation, transfer); });
}

Collective MeetAndLaunch(const Messages& messages, Stage stage) {
  TransferBatch arrivals(messages);
  for (int i = 1; i < messages.size(); ++i) {
    arrivals.Receive((messages.rank + messages.size() - i) % messages.size(), 0, {});
  }
  for (int i = 1; i < messages.size(); ++i) {
    arrivals.Send((messages.rank + i) % messages.size(), 0, {});
  }
  co_await arrivals;
  WatchPeers(messages, 1);
  TransferBatch on_device(messages);
  LaunchIn(on_device, stage);
  co_await on_device;
  WatchPeers(messages, -1);
}

// The two directions between two ranks count alike, so their messages differ by the piece.
constexpr uint32_t kFromSender = 0, kFromReceiver = 1;

// The sender made `id`, which comes along each time: who is there first opens the link.
Collective PairAndLaunch(const Messages& messages, Stage stage, int peer, bool sends,
                         std::shared_ptr<NcclId> id) {
  TransferBatch arrivals(messages);
  arrivals.Receive(peer, sends ? kFromReceiver : kFromSender,
                   sends ? std::span<std::byte>() : std::span(*id));
  arrivals.Send(peer, sends ? kFromSender : kFromReceiver,
                sends ? std::span<const std::byte>(*id) : std::span<const std::byte>());
  co_await arrivals;
  stage.queue->Open(stage.link, *id, {sends ? 0 : 1, 2});
  const Messages::Peer& other = messages.peers[static_cast<size_t>(peer)];
  other.transport->Watch(other.rank, 1);
  TransferBatch on_device(messages);
  LaunchIn(on_device, stage);
  co_await on_device;
  other.transport->Watch(other.rank, -1);
}

class NcclWork : public Work {
 public:
  NcclWork(std::shared_ptr<NcclQueue> queue, NcclOperationPtr operation, WorkPtr work)
      : queue_(std::move(queue)), operation_(std::move(operation)), work_(std::move(work)) {}

  absl::Status Wait() override {
    if (work_->done() || !queue_->AwaitLaunch(*operation_)) return work_->Wait();
    return queue_->device().ComputeWaitsFor(*operation_->event);
  }
  bool done() const override {
    if (work_->done()) return true;
    if (!queue_->launched(*operation_)) return false;
    const absl::StatusOr<bool> reached = queue_->device().Reached(*operation_->event);
    return reached.ok() && *reached;
  }

 private:
  const std::shared_ptr<NcclQueue> queue_;
  const NcclOperationPtr operation_;
  const WorkPtr work_;
};

}  // namespace

NcclCommunicator::Group::Group(Options from) : options(std::move(from)) {
  CADRE_CHECK(options.number % 2 == 0);
  for (const Messages::Peer& peer : options.peers) ranks.push_back(peer.rank);
  ranks_text = fmt::format("{}", fmt::join(ranks, ", "));
}

NcclCommunicator::NcclCommunicator(ProgressEngine& engine, std::shared_ptr<NcclQueue> queue,
                                   Options options)
    : engine_(engine),
      queue_(std::move(queue)),
      group_(std::make_shared<const Group>(std::move(options))),
      link_(queue_->NewLink()) {
  queue_->Open(link_, group_->options.id, place());
}

NcclCommunicator::~NcclCommunicator() {
  link_ = nullptr;
  directions_.clear();
  queue_->Reap();
}

void NcclCommunicator::CheckDevice(const std::vector<Tensor>& tensors) const {
  const Device device = queue_->device().device();
  for (const Tensor& tensor : tensors) {
    CADRE_CHECK(tensor.device() == device, "group {} has tensors of another device", name());
  }
}

NcclOperationPtr NcclCommunicator::NewOperation(Call& call, uint32_t number) const {
  CheckDevice(call.tensors);
  auto operation = std::make_shared<NcclOperation>();
  operation->what =
      fmt::format("{} '{}' of group {}", call.operation, ToString(call.label), name());
  operation->number = number;
  operation->calls = std::move(call.calls);
  auto event = queue_->device().MarkCompute();
  operation->status = event.status();
  if (event.ok()) operation->event = std::move(*event);
  return operation;
}

WorkPtr NcclCommunicator::StartWith(Call call, uint32_t communicator,
                                    const NcclOperationPtr& operation,
                                    std::function<Collective(const Messages&)> begin) {
  const Options& options = group_->options;
  WorkPtr work = engine_.Start({.info = {.group = options.name,
                                         .operation = call.operation,
                                         .label = ToString(call.label),
                                         .layer = call.label.layer,
                                         .bucket = call.label.bucket,
                                         .sequence = operation->number,
                                         .bytes = call.bytes,
                                         .peer = call.peer,
                                         .ranks = group_->ranks_text},
                                .messages = {options.peers, options.rank, communicator,
                                             operation->number, engine_.staging()},
                                .group = group_,
                                .pinned = std::move(call.tensors),
                                .timeout = options.timeout,
                                .begin = std::move(begin)});
  return std::make_shared<NcclWork>(queue_, operation, std::move(work));
}

WorkPtr NcclCommunicator::Start(Call call) {
  const NcclOperationPtr operation = NewOperation(call, sequence_++);
  return StartWith(std::move(call), group_->options.number, operation,
                   [stage = Stage{queue_, link_, operation}](const Messages& messages) {
                     return MeetAndLaunch(messages, stage);
                   });
}

NcclCommunicator::Direction& NcclCommunicator::DirectionOf(int peer, bool sends) {
  CADRE_CHECK(peer >= 0 && peer < size() && peer != rank(), "{} {} of {}", sends ? "to" : "from",
              peer, size());
  const auto [found, fresh] = directions_.try_emplace({peer, sends});
  if (fresh) {
    found->second.link = queue_->NewLink();
    found->second.id = sends ? queue_->device().MakeId() : NcclId{};
  }
  return found->second;
}

WorkPtr NcclCommunicator::StartPointToPoint(Call call, int peer, bool sends) {
  Direction& direction = DirectionOf(peer, sends);
  call.peer = ranks()[static_cast<size_t>(peer)];
  const NcclOperationPtr operation = NewOperation(call, direction.sequence++);
  if (!direction.id.ok()) operation->status = direction.id.status();
  auto id = std::make_shared<NcclId>(direction.id.ok() ? *direction.id : NcclId{});
  const Stage stage = {queue_, direction.link, operation};
  return StartWith(std::move(call), group_->options.number + 1, operation,
                   [stage, peer, sends, id = std::move(id)](const Messages& messages) {
                     return PairAndLaunch(messages, stage, peer, sends, id);
                   });
}

WorkPtr NcclCommunicator::AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) {
  return Start({"all_reduce", label, buffer.bytes(), {buffer}, AllReduceCalls(buffer, op)});
}

WorkPtr NcclCommunicator::ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                                        const OpLabel& label) {
  return Start({"reduce_scatter",
                label,
                input.bytes(),
                {input, output},
                ReduceScatterCalls(place(), input, output, op)});
}

WorkPtr NcclCommunicator::ReduceScatterV(const Tensor& input, const Tensor& output,
                                         std::span<const int64_t> rows, ReduceOp op,
                                         const OpLabel& label) {
  return Start({"reduce_scatter_v",
                label,
                input.bytes(),
                {input, output},
                ReduceScatterVCalls(place(), input, output, rows, op)});
}

WorkPtr NcclCommunicator::AllGather(const Tensor& input, const Tensor& output,
                                    const OpLabel& label) {
  return Start({"all_gather",
                label,
                output.bytes(),
                {input, output},
                AllGatherCalls(place(), input, output)});
}

WorkPtr NcclCommunicator::AllGatherV(const Tensor& input, const Tensor& output,
                                     std::span<const int64_t> rows, const OpLabel& label) {
  return Start({"all_gather_v",
                label,
                output.bytes(),
                {input, output},
                AllGatherVCalls(place(), input, output, rows)});
}

WorkPtr NcclCommunicator::AllToAll(const Tensor& input, const Tensor& output,
                                   const OpLabel& label) {
  return Start(
      {"all_to_all", label, input.bytes(), {input, output}, AllToAllCalls(place(), input, output)});
}

WorkPtr NcclCommunicator::AllToAllV(const Tensor& input, std::span<const int64_t> send_rows,
                                    const Tensor& output, std::span<const int64_t> receive_rows,
                                    const OpLabel& label) {
  return Start({"all_to_all_v",
                label,
                input.bytes(),
                {input, output},
                AllToAllVCalls(place(), input, send_rows, output, receive_rows)});
}

WorkPtr NcclCommunicator::Broadcast(const Tensor& buffer, int root, const OpLabel& label) {
  return Start(
      {"broadcast", label, buffer.bytes(), {buffer}, BroadcastCalls(place(), buffer, root)});
}

WorkPtr NcclCommunicator::Send(const Tensor& tensor, int to, const OpLabel& label) {
  return StartPointToPoint({"send", label, tensor.bytes(), {tensor}, SendCalls(tensor)}, to, true);
}

WorkPtr NcclCommunicator::Receive(const Tensor& tensor, int from, const OpLabel& label) {
  return StartPointToPoint({"receive", label, tensor.bytes(), {tensor}, ReceiveCalls(tensor)}, from,
                           false);
}

WorkPtr NcclCommunicator::Barrier(const OpLabel& label) {
  return Start({"barrier", label, 0, {}, MeetCalls()});
}

}  // namespace cadre
