#include "tests/faulty_group.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <set>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/host_allocator.h"
#include "parallel/test_group.h"

namespace cadre::testing_run {
namespace {

using Kind = Fault::Kind;

std::vector<int> RanksOf(const Layout& layout, const std::string& name, int rank) {
  for (const Axis axis : kAxes) {
    const std::string whole(Name(axis));
    if (name == whole) return GroupRanks(layout, axis, rank);
    if (name == whole + "_shard") return ShardRanks(layout, axis, rank);
    if (name == whole + "_copy") return CopyRanks(layout, axis, rank);
  }
  CADRE_CHECK(false, "no group is named {}", name);
}

// The rank's group crossed with those beside it, which are of the same pipeline position: the
// ranks at place j of the groups k + j.
std::vector<int> CrossedRanks(const Layout& layout, const std::string& name, int rank) {
  const std::vector<int> own = RanksOf(layout, name, rank);
  const int position = CoordinatesOf(layout, own.front()).pp;
  std::set<std::vector<int>> all;
  for (int r = 0; r < layout.world(); ++r) {
    std::vector<int> ranks = RanksOf(layout, name, r);
    if (!ranks.empty() && CoordinatesOf(layout, ranks.front()).pp == position) {
      all.insert(std::move(ranks));
    }
  }
  const std::vector<std::vector<int>> beside(all.begin(), all.end());
  CADRE_CHECK(beside.size() > 1, "there is no group beside {}", name);
  const size_t at = static_cast<size_t>(std::ranges::find(beside, own) - beside.begin());
  const size_t place = static_cast<size_t>(std::ranges::find(own, rank) - own.begin());
  const size_t first = at + place * (beside.size() - 1);  // at - place, and not below 0
  std::vector<int> crossed;
  for (size_t j = 0; j < own.size(); ++j) {
    crossed.push_back(beside[(first + j) % beside.size()][j]);
  }
  return crossed;
}

struct DoneWork : Work {
  absl::Status Wait() override { return absl::OkStatus(); }
  bool done() const override { return true; }
};
WorkPtr Done() { return std::make_shared<DoneWork>(); }

// Spoils what has come.
class SpoiledWork : public Work {
 public:
  SpoiledWork(WorkPtr work, std::function<void()> spoil)
      : work_(std::move(work)), spoil_(std::move(spoil)) {}
  absl::Status Wait() override {
    const absl::Status status = work_->Wait();
    if (const auto spoil = std::exchange(spoil_, nullptr); spoil) spoil();
    return status;
  }
  bool done() const override { return work_->done(); }

 private:
  WorkPtr work_;
  std::function<void()> spoil_;
};

void ShiftRows(const Tensor& rows) {
  if (rows.dim(0) == 0) return;
  std::rotate(rows.raw(), rows.raw() + rows.bytes() / static_cast<size_t>(rows.dim(0)),
              rows.raw() + rows.bytes());
}

void Multiply(const Tensor& x, int by) {
  VisitFloat(x.dtype(), [&](auto t) {
    using T = decltype(t);
    for (T& value : x.span<T>()) value = static_cast<T>(static_cast<double>(value) * by);
  });
}

class FaultyGroup : public ForwardingGroup {
 public:
  // other: of a wrong group.
  FaultyGroup(std::unique_ptr<Communicator> group, Fault fault, std::unique_ptr<Communicator> other)
      : ForwardingGroup(std::move(group)), fault_(std::move(fault)), other_(std::move(other)) {}

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->AllReduce(buffer, op, label);
    if (Hit(Kind::kDroppedSum, label)) return Done();
    return Scaled(ForwardingGroup::AllReduce(buffer, Op(op, label), label), buffer, label);
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->ReduceScatter(input, output, op, label);
    if (Hit(Kind::kDroppedSum, label)) {
      return Own(input, output, output.bytes() * static_cast<size_t>(rank()));
    }
    return Scaled(ForwardingGroup::ReduceScatter(input, output, Op(op, label), label), output,
                  label);
  }
  WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                         ReduceOp op, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) {
      return other_->ReduceScatterV(input, output, rows, op, label);
    }
    if (Hit(Kind::kDroppedSum, label)) {
      const auto own = rows.begin() + rank();
      const size_t before = static_cast<size_t>(std::accumulate(rows.begin(), own, int64_t{0}));
      return Own(input, output,
                 *own == 0 ? 0 : output.bytes() / static_cast<size_t>(*own) * before);
    }
    return Scaled(ForwardingGroup::ReduceScatterV(input, output, rows, Op(op, label), label),
                  output, label);
  }
  WorkPtr AllGather(const Tensor& input, const Tensor& output, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->AllGather(input, output, label);
    return ForwardingGroup::AllGather(input, output, label);
  }
  WorkPtr AllGatherV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                     const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->AllGatherV(input, output, rows, label);
    return Shifted(ForwardingGroup::AllGatherV(input, output, rows, label), output, label);
  }
  WorkPtr AllToAll(const Tensor& input, const Tensor& output, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->AllToAll(input, output, label);
    return ForwardingGroup::AllToAll(input, output, label);
  }
  WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows, const Tensor& output,
                    std::span<const int64_t> receive_rows, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) {
      return other_->AllToAllV(input, send_rows, output, receive_rows, label);
    }
    return Shifted(ForwardingGroup::AllToAllV(input, send_rows, output, receive_rows, label),
                   output, label);
  }
  WorkPtr Send(const Tensor& tensor, int to, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->Send(tensor, to, label);
    if (Hit(Kind::kTurnedAround, label)) return ForwardingGroup::Send(tensor, Mirror(to), label);
    if (Hit(Kind::kSwapped, label)) return Swapped(tensor, to, label);
    if (!Hit(Kind::kZeros, label)) return ForwardingGroup::Send(tensor, to, label);
    return ForwardingGroup::Send(Tensor::Zeros(memory_, tensor.shape(), tensor.dtype()), to, label);
  }
  WorkPtr Receive(const Tensor& tensor, int from, const OpLabel& label) override {
    if (Hit(Kind::kWrongGroup, label)) return other_->Receive(tensor, from, label);
    const int sender = Hit(Kind::kTurnedAround, label) ? Mirror(from) : from;
    return ForwardingGroup::Receive(tensor, sender, label);
  }

 private:
  bool Hit(Kind kind, const OpLabel& label) const {
    return fault_.kind == kind && label.what.starts_with(fault_.label);
  }
  ReduceOp Op(ReduceOp op, const OpLabel& label) const {
    return Hit(Kind::kAverage, label) ? ReduceOp::kAverage : op;
  }
  static WorkPtr Own(const Tensor& input, const Tensor& output, size_t begin) {
    std::memmove(output.raw(), input.raw() + begin, output.bytes());
    return Done();
  }
  WorkPtr Scaled(WorkPtr work, const Tensor& sum, const OpLabel& label) const {
    if (!Hit(Kind::kUnscaled, label)) return work;
    return std::make_shared<SpoiledWork>(std::move(work), [sum, n = size()] { Multiply(sum, n); });
  }
  WorkPtr Shifted(WorkPtr work, const Tensor& rows, const OpLabel& label) const {
    if (!Hit(Kind::kShiftedRows, label)) return work;
    return std::make_shared<SpoiledWork>(std::move(work), [rows] { ShiftRows(rows); });
  }
  // The rank as far behind this one as `peer` is ahead.
  int Mirror(int peer) const { return (2 * rank() + size() - peer) % size(); }

  // The first message waits here for the second.
  WorkPtr Swapped(const Tensor& tensor, int to, const OpLabel& label) {
    const int before = sent_[to]++;
    if (before == 0) {
      Tensor& held = held_[to] = Tensor::Empty(memory_, tensor.shape(), tensor.dtype());
      std::memcpy(held.raw(), tensor.raw(), tensor.bytes());
      return Done();
    }
    if (before > 1) return ForwardingGroup::Send(tensor, to, label);
    const WorkPtr second = ForwardingGroup::Send(tensor, to, label);
    const WorkPtr first = ForwardingGroup::Send(held_.extract(to).mapped(), to, label);
    return std::make_shared<SpoiledWork>(first, [second] { (void)second->Wait(); });
  }

  const Fault fault_;
  const std::unique_ptr<Communicator> other_;
  HostAllocator memory_;        // of messages
  std::map<int, int> sent_;     // messages, by receiver
  std::map<int, Tensor> held_;  // likewise
};

}  // namespace

Mesh::Wrap Spoil(const Fault& fault, World& world, const Layout& layout) {
  return [fault, &world, layout](std::unique_ptr<Communicator> group) {
    if (group->name() != fault.group) return group;
    std::unique_ptr<Communicator> other;
    if (fault.kind == Kind::kWrongGroup) {
      const bool crossed = fault.other.empty();
      other = world.NewGroup(crossed ? "crossed " + fault.group : fault.other,
                             crossed ? CrossedRanks(layout, fault.group, world.rank())
                                     : RanksOf(layout, fault.other, world.rank()));
      if (fault.label.empty()) return other;
    }
    group = std::make_unique<FaultyGroup>(std::move(group), fault, std::move(other));
    return group;
  };
}

}  // namespace cadre::testing_run
