// CpuCommunicator: a group of ranks whose tensors lie in host memory; the algorithms of
// collectives.h on a ProgressEngine. World makes them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/collectives.h"
#include "parallel/communicator.h"
#include "parallel/progress_engine.h"

namespace cadre {

class CpuCommunicator : public Communicator {
 public:
  struct Options {
    std::string name;
    uint32_t number = 0;  // even, the same on all ranks of the group, shared with no other group
    int rank = 0;         // in the group
    std::vector<Messages::Peer> peers;
    std::chrono::milliseconds timeout{0};  // 0: the engine's
  };

  // The engine outlives it.
  CpuCommunicator(ProgressEngine& engine, Options options);

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
  using Begin = std::function<Collective(const Messages&)>;
  struct Call {
    std::string_view operation;
    const OpLabel& label;
    size_t bytes;
    std::vector<Tensor> tensors;
    Begin begin;
    int peer = -1;  // of the world, point to point
  };
  WorkPtr Start(Call call);
  WorkPtr StartPointToPoint(Call call, int peer, uint32_t* sequence);
  WorkPtr ReduceParts(Call call, std::vector<int64_t> parts, ReduceOp op);
  WorkPtr StartExchange(Call call, ConstPieces send, Pieces receive);
  WorkPtr StartWith(Call call, uint32_t communicator, uint32_t sequence);

  ProgressEngine& engine_;
  const std::shared_ptr<const Group> group_;
  uint32_t sequence_ = 0;
  std::vector<uint32_t> sent_, received_;  // messages from point to point, by rank in the group
};

}  // namespace cadre
