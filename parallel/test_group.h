// A communicator that hands everything to another one, for tests that stand between a group and its
// users (Mesh::Wrap): override what is to be seen or spoiled.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace cadre {

class ForwardingGroup : public Communicator {
 public:
  explicit ForwardingGroup(std::unique_ptr<Communicator> group) : group_(std::move(group)) {}

  const std::string& name() const override { return group_->name(); }
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  const std::vector<int>& ranks() const override { return group_->ranks(); }

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override {
    return group_->AllReduce(buffer, op, label);
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override {
    return group_->ReduceScatter(input, output, op, label);
  }
  WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                         ReduceOp op, const OpLabel& label) override {
    return group_->ReduceScatterV(input, output, rows, op, label);
  }
  WorkPtr AllGather(const Tensor& input, const Tensor& output, const OpLabel& label) override {
    return group_->AllGather(input, output, label);
  }
  WorkPtr AllGatherV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                     const OpLabel& label) override {
    return group_->AllGatherV(input, output, rows, label);
  }
  WorkPtr AllToAll(const Tensor& input, const Tensor& output, const OpLabel& label) override {
    return group_->AllToAll(input, output, label);
  }
  WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows, const Tensor& output,
                    std::span<const int64_t> receive_rows, const OpLabel& label) override {
    return group_->AllToAllV(input, send_rows, output, receive_rows, label);
  }
  WorkPtr Broadcast(const Tensor& buffer, int root, const OpLabel& label) override {
    return group_->Broadcast(buffer, root, label);
  }
  WorkPtr Send(const Tensor& tensor, int to, const OpLabel& label) override {
    return group_->Send(tensor, to, label);
  }
  WorkPtr Receive(const Tensor& tensor, int from, const OpLabel& label) override {
    return group_->Receive(tensor, from, label);
  }
  WorkPtr Barrier(const OpLabel& label) override { return group_->Barrier(label); }

 private:
  std::unique_ptr<Communicator> group_;
};

}  // namespace cadre
