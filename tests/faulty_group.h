// A communicator that does one thing wrong, to see that a test notices: for operations of one group
// whose label begins with a text, a sum is not made, or is an average.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "parallel/communicator.h"

namespace cadre::testing_run {

struct Fault {
  enum class Kind { kNone, kDroppedSum, kAverage };
  Kind kind = Kind::kNone;
  std::string group;  // "dp_cp"
  std::string label;  // what OpLabel::what begins with
};

class FaultyGroup : public Communicator {
 public:
  FaultyGroup(std::unique_ptr<Communicator> group, Fault fault)
      : group_(std::move(group)), fault_(std::move(fault)) {}

  const std::string& name() const override { return group_->name(); }
  int rank() const override { return group_->rank(); }
  int size() const override { return group_->size(); }
  const std::vector<int>& ranks() const override { return group_->ranks(); }

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override {
    return Dropped(label) ? Done() : group_->AllReduce(buffer, Op(op, label), label);
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override {
    if (!Dropped(label)) return group_->ReduceScatter(input, output, Op(op, label), label);
    std::memmove(output.raw(), input.raw() + output.bytes() * static_cast<size_t>(rank()),
                 output.bytes());
    return Done();
  }
  WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                         ReduceOp op, const OpLabel& label) override {
    // Used in place alone, where output is this rank's part already.
    return Dropped(label) ? Done()
                          : group_->ReduceScatterV(input, output, rows, Op(op, label), label);
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
  struct DoneWork : Work {
    absl::Status Wait() override { return absl::OkStatus(); }
    bool done() const override { return true; }
  };
  static WorkPtr Done() { return std::make_shared<DoneWork>(); }

  bool Hit(const OpLabel& label) const {
    return name() == fault_.group && label.what.starts_with(fault_.label);
  }
  bool Dropped(const OpLabel& label) const {
    return fault_.kind == Fault::Kind::kDroppedSum && Hit(label);
  }
  ReduceOp Op(ReduceOp op, const OpLabel& label) const {
    return fault_.kind == Fault::Kind::kAverage && Hit(label) ? ReduceOp::kAverage : op;
  }

  std::unique_ptr<Communicator> group_;
  const Fault fault_;
};

}  // namespace cadre::testing_run
