// NcclCommunicator: a group of ranks whose tensors lie on GPUs, one for each rank. World makes them
// (World::NewDeviceGroup).
//
// Each call is an operation of the ProgressEngine, as those of CpuCommunicator are, so it is
// recorded, traced, timed out and ended like them: its ranks first tell one another over the
// engine's transports that they have come, which names whom NCCL would wait for in vain, and then
// launch it (nccl_queue.h). Its GPU work waits for what the compute stream was given before the
// call.
//
// Wait orders the compute stream behind the operation; the host waits only until it is launched.
// What happens afterwards it learns from done, from a later Wait of any operation, or from
// World::status: after work on the stream has been awaited, that must be asked before results
// count. A failed operation leaves its output undefined.
//
// Sums are NCCL's: no order is promised, other sizes and numbers of ranks may round otherwise. Send
// and Receive between two ranks have a link for each direction, made at its first use, so that they
// hold up neither each other nor collectives. All groups of a GPU are used in one order by all
// ranks where NCCL asks for that (its guide: "using multiple NCCL communicators concurrently").
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/nccl_queue.h"
#include "parallel/progress_engine.h"

namespace cadre {

class NcclCommunicator : public Communicator {
 public:
  struct Options {
    std::string name;
    uint32_t number = 0;  // even, the same on all ranks of the group, shared with no other group
    int rank = 0;         // in the group
    std::vector<Messages::Peer> peers;
    std::chrono::milliseconds timeout{0};  // 0: the engine's
    NcclId id;                             // the same on all ranks of the group
  };

  // The engine outlives it.
  NcclCommunicator(ProgressEngine& engine, std::shared_ptr<NcclQueue> queue, Options options);
  ~NcclCommunicator() override;

  const std::string& name() const override { return group_->options.name; }
  int rank() const override { return group_->options.rank; }
  int size() const override { return static_cast<int>(group_->ranks.size()); }
  const std::vector<int>& ranks() const override { return group_->ranks; }

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override;
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override;
  WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                         ReduceOp op, const OpLabel& label) override;
  WorkPtr AllGather(const Tensor& input, const Tensor& output, const OpLabel& label) override;
  WorkPtr AllGatherV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                     const OpLabel& label) override;
  WorkPtr AllToAll(const Tensor& input, const Tensor& output, const OpLabel& label) override;
  WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows, const Tensor& output,
                    std::span<const int64_t> receive_rows, const OpLabel& label) override;
  WorkPtr Broadcast(const Tensor& buffer, int root, const OpLabel& label) override;
  WorkPtr Send(const Tensor& tensor, int to, const OpLabel& label) override;
  WorkPtr Receive(const Tensor& tensor, int from, const OpLabel& label) override;
  WorkPtr Barrier(const OpLabel& label) override;

 private:
  // Shared with operations in flight, which may outlive this.
  struct Group {
    explicit Group(Options from);
    Options options;
    std::vector<int> ranks;
    std::string ranks_text;  // for traces
  };
  // The way of the messages to or from one rank.
  struct Direction {
    NcclQueue::LinkPtr link;
    absl::StatusOr<NcclId> id;  // the sender's
    uint32_t sequence = 0;
  };
  struct Call {
    std::string_view operation;
    const OpLabel& label;
    size_t bytes;
    std::vector<Tensor> tensors;
    NcclCalls calls;
    int peer = -1;  // of the world, point to point
  };

  NcclPlace place() const { return {rank(), size()}; }
  void CheckDevice(const std::vector<Tensor>& tensors) const;
  NcclOperationPtr NewOperation(Call& call, uint32_t number) const;
  WorkPtr Start(Call call);
  WorkPtr StartPointToPoint(Call call, int peer, bool sends);
  Direction& DirectionOf(int peer, bool sends);
  WorkPtr StartWith(Call call, uint32_t communicator, const NcclOperationPtr& operation,
                    std::function<Collective(const Messages&)> begin);

  ProgressEngine& engine_;
  const std::shared_ptr<NcclQueue> queue_;
  const std::shared_ptr<const Group> group_;
  NcclQueue::LinkPtr link_;  // of the collectives
  uint32_t sequence_ = 0;
  std::map<std::pair<int, bool>, Direction> directions_;  // by rank in the group, whether to it
};

}  // namespace cadre
