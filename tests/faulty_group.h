// A communicator that does one thing wrong, to see that a test notices: for operations of one group
// whose label begins with a text, a sum is not made, or is an average, or rows come in wrong
// places.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "parallel/test_group.h"

namespace cadre::testing_run {

struct Fault {
  enum class Kind { kNone, kDroppedSum, kAverage, kShiftedRows };
  Kind kind = Kind::kNone;
  std::string group;  // "dp_cp"
  std::string label;  // what OpLabel::what begins with
};

class FaultyGroup : public ForwardingGroup {
 public:
  FaultyGroup(std::unique_ptr<Communicator> group, Fault fault)
      : ForwardingGroup(std::move(group)), fault_(std::move(fault)) {}

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override {
    return Dropped(label) ? Done() : ForwardingGroup::AllReduce(buffer, Op(op, label), label);
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override {
    if (!Dropped(label)) return ForwardingGroup::ReduceScatter(input, output, Op(op, label), label);
    return Own(input, output, output.bytes() * static_cast<size_t>(rank()));
  }
  WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                         ReduceOp op, const OpLabel& label) override {
    if (!Dropped(label)) {
      return ForwardingGroup::ReduceScatterV(input, output, rows, Op(op, label), label);
    }
    const auto own = rows.begin() + rank();
    const size_t before = static_cast<size_t>(std::accumulate(rows.begin(), own, int64_t{0}));
    return Own(input, output, *own == 0 ? 0 : output.bytes() / static_cast<size_t>(*own) * before);
  }
  WorkPtr AllGatherV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                     const OpLabel& label) override {
    return Shifted(ForwardingGroup::AllGatherV(input, output, rows, label), output, label);
  }
  WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows, const Tensor& output,
                    std::span<const int64_t> receive_rows, const OpLabel& label) override {
    return Shifted(ForwardingGroup::AllToAllV(input, send_rows, output, receive_rows, label),
                   output, label);
  }

 private:
  struct DoneWork : Work {
    absl::Status Wait() override { return absl::OkStatus(); }
    bool done() const override { return true; }
  };
  static WorkPtr Done() { return std::make_shared<DoneWork>(); }

  // Rows come in the place of the next.
  class ShiftedWork : public Work {
   public:
    ShiftedWork(WorkPtr work, const Tensor& rows) : work_(std::move(work)), rows_(rows) {}
    absl::Status Wait() override {
      const absl::Status status = work_->Wait();
      const Tensor rows = std::exchange(rows_, {});
      if (!rows.defined() || rows.dim(0) == 0) return status;
      std::rotate(rows.raw(), rows.raw() + rows.bytes() / static_cast<size_t>(rows.dim(0)),
                  rows.raw() + rows.bytes());
      return status;
    }
    bool done() const override { return work_->done(); }

   private:
    WorkPtr work_;
    Tensor rows_;
  };

  static WorkPtr Own(const Tensor& input, const Tensor& output, size_t begin) {
    std::memmove(output.raw(), input.raw() + begin, output.bytes());
    return Done();
  }
  bool Hit(const OpLabel& label) const {
    return name() == fault_.group && label.what.starts_with(fault_.label);
  }
  WorkPtr Shifted(WorkPtr work, const Tensor& rows, const OpLabel& label) const {
    if (fault_.kind != Fault::Kind::kShiftedRows || !Hit(label)) return work;
    return std::make_shared<ShiftedWork>(std::move(work), rows);
  }
  bool Dropped(const OpLabel& label) const {
    return fault_.kind == Fault::Kind::kDroppedSum && Hit(label);
  }
  ReduceOp Op(ReduceOp op, const OpLabel& label) const {
    return fault_.kind == Fault::Kind::kAverage && Hit(label) ? ReduceOp::kAverage : op;
  }

  const Fault fault_;
};

}  // namespace cadre::testing_run
