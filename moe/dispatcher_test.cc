#include "moe/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "moe/moe_layer.h"
#include "parallel/mesh.h"
#include "parallel/test_group.h"
#include "parallel/test_rig.h"

namespace cadre::moe {
namespace {

constexpr int kRanks = 4;
constexpr int64_t kTokens = 6, kHidden = 4, kExperts = 8, kInner = 8, kTopK = 3;

// Counts what this rank sends to others by all-to-all, in bytes of rows.
class CountingGroup : public ForwardingGroup {
 public:
  CountingGroup(std::unique_ptr<Communicator> group, int64_t* bytes)
      : ForwardingGroup(std::move(group)), bytes_(bytes) {}

  WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows, const Tensor& output,
                    std::span<const int64_t> receive_rows, const OpLabel& label) override {
    const auto row = input.dim(1) * static_cast<int64_t>(SizeOf(input.dtype()));
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) *bytes_ += send_rows[static_cast<size_t>(r)] * row;
    }
    return ForwardingGroup::AllToAllV(input, send_rows, output, receive_rows, label);
  }

 private:
  int64_t* bytes_;
};

Layout LayoutOf(int ep, int etp) {
  return {.tp = etp,
          .dp = kRanks / etp,
          .etp = etp,
          .ep = ep,
          .edp = kRanks / (etp * ep),
          .sequence_parallel = etp > 1};
}

// One rank's part of a mixture layer, or all of it.
struct LayerRig {
  LayerRig(HostAllocator& allocator, World* world, const Layout& layout)
      : memory(allocator),
        mesh(world, layout,
             [this](std::unique_ptr<Communicator> group) {
               return std::make_unique<CountingGroup>(std::move(group), &bytes);
             }),
        groups(mesh.Groups()) {
    const ModelPart part = mesh.part();
    const int64_t own = kExperts / part.ep, inner = kInner / part.etp;
    router = store.Add({.name = "router", .shape = {kExperts, kHidden}});
    experts = {.gate_up = store.Add({.name = "gate_up", .shape = {own, 2 * inner, kHidden}}),
               .down = store.Add({.name = "down", .shape = {own, kHidden, inner}})};
    store.Allocate(memory, DType::kF64, {.gradients = true});
    ctx = {.allocator = &memory, .parameters = &store, .tape = &tape, .groups = &groups};
    Fill(router, [](int64_t i) { return i; });
    Fill(experts.gate_up, [&](int64_t i) {
      const int64_t column = i % kHidden, row = i / kHidden % (2 * inner);
      const int64_t whole_row = row / inner * kInner + part.etp_rank * inner + row % inner;
      const int64_t expert = i / kHidden / (2 * inner) + part.ep_rank * own;
      return (expert * 2 * kInner + whole_row) * kHidden + column;
    });
    Fill(experts.down, [&](int64_t i) {
      const int64_t whole_column = i % inner + part.etp_rank * inner;
      return (i / inner + part.ep_rank * own * kHidden) * kInner + whole_column;
    });
  }

  // Element i is the draw of the element that it is of the whole weight.
  template <typename WholeIndex>
  void Fill(ParamId id, WholeIndex whole) {
    const RandomKey key(3, store.spec(id).name);
    LeasedWeight weight(ctx, id, Lease::kForward);
    for (int64_t i = 0; i < weight.tensor().numel(); ++i) {
      weight.tensor().data<double>()[i] = key.Normal(static_cast<uint64_t>(whole(i)));
    }
  }
  Router MakeRouter() const {
    return {{.experts = kExperts, .top_k = kTopK, .renormalize = true}, {.weight = router}};
  }
  // The rows of this rank of all ranks' tokens.
  Tensor Mine(const Tensor& all) const { return all.Narrow(mesh.rank() * kTokens, kTokens); }

  HostAllocator& memory;
  int64_t bytes = 0;
  Mesh mesh;
  ParallelGroups groups;
  ParameterStore store;
  Tape tape{&ops::Accumulate};
  Context ctx;
  ParamId router;
  ExpertParams experts;
};

struct Result {
  Tensor y, dx;
};

// Over the rows that this rank has of `tokens`, with `dy` as the gradient of the result.
Result ForwardAndBackward(LayerRig& rig, const Tensor& tokens, const Tensor& dy,
                          const RouterOptions& options = {}) {
  const MoeLayer layer(rig.MakeRouter(), Experts(rig.experts, {}),
                       MakeDispatcher(kExperts, rig.mesh.part()));
  Var x{tokens, rig.tape.NewSlot()};
  rig.tape.KeepGrad(x.slot);
  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(tokens.dim(0))};
  const Var y = layer.Forward(rig.ctx, x, offsets, options, 0).y.Wait(rig.ctx);
  rig.tape.Seed(y.slot, dy);
  rig.tape.Backward(rig.ctx);
  EXPECT_TRUE(rig.groups.failure.ok()) << Message(rig.groups.failure);
  return {y.value, rig.tape.Grad(rig.ctx, x.slot)};
}

class Folds : public testing::TestWithParam<std::pair<int, int>> {};  // ep, etp
INSTANTIATE_TEST_SUITE_P(EveryFold, Folds,
                         testing::Values(std::pair{1, 1}, std::pair{1, 2}, std::pair{1, 4},
                                         std::pair{2, 1}, std::pair{2, 2}, std::pair{4, 1}));

TEST_P(Folds, ComputeTheLayer) {
  const auto [ep, etp] = GetParam();
  HostAllocator memory;
  const Tensor x = Random(memory, {kRanks * kTokens, kHidden}, DType::kF64, 1);
  const Tensor dy = Random(memory, {kRanks * kTokens, kHidden}, DType::kF64, 2);
  LayerRig whole(memory, nullptr, {});
  const Result want = ForwardAndBackward(whole, x, dy);
  RunRanks(kRanks, [&, ep = ep, etp = etp](World& world) {
    LayerRig rig(memory, &world, LayoutOf(ep, etp));
    const Result got = ForwardAndBackward(rig, rig.Mine(x), rig.Mine(dy));
    EXPECT_LE(Distance(got.y, rig.Mine(want.y)), 1e-12);
    EXPECT_LE(Distance(got.dx, rig.Mine(want.dx)), 1e-12);
  });
}

// With a capacity the layer is that of one process on the rank's tokens, whoever computes it, and
// what is dropped does not travel.
TEST_P(Folds, DropTheSameTokens) {
  const auto [ep, etp] = GetParam();
  HostAllocator memory;
  const Tensor x = Random(memory, {kRanks * kTokens, kHidden}, DType::kF64, 1);
  const Tensor dy = Random(memory, {kRanks * kTokens, kHidden}, DType::kF64, 2);
  RunRanks(kRanks, [&, ep = ep, etp = etp](World& world) {
    constexpr RouterOptions kTight = {.capacity_factor = 0.6};
    LayerRig rig(memory, &world, LayoutOf(ep, etp)), free(memory, &world, LayoutOf(ep, etp));
    const Result got = ForwardAndBackward(rig, rig.Mine(x), rig.Mine(dy), kTight);
    const Result dropless = ForwardAndBackward(free, rig.Mine(x), rig.Mine(dy));
    LayerRig whole(memory, nullptr, {});
    const Result want = ForwardAndBackward(whole, rig.Mine(x), rig.Mine(dy), kTight);
    EXPECT_LE(Distance(got.y, want.y), 1e-12);
    EXPECT_LE(Distance(got.dx, want.dx), 1e-12);
    EXPECT_GT(Distance(got.y, dropless.y), 1e-3);
    if (ep > 1) {
      EXPECT_LT(rig.bytes, free.bytes);
    }
  });
}

// What each rank sends by all-to-all for its tokens and their results. gathered_first: the ranks
// that share an expert gather their tokens before, so that each sends those of all.
std::vector<int64_t> BytesSent(const Layout& layout, bool gathered_first) {
  std::vector<int64_t> bytes(kRanks);
  HostAllocator memory;
  const Tensor all = Random(memory, {kRanks * kTokens, kHidden}, DType::kF64, 1);
  RunRanks(kRanks, [&](World& world) {
    LayerRig rig(memory, &world, layout);
    Var x{rig.Mine(all)};
    if (gathered_first) {
      x = GatherTokens(rig.ctx, x, std::exchange(rig.groups.etp, nullptr), {"naive"});
    }
    const std::vector<int32_t> offsets = {0, static_cast<int32_t>(x.value.dim(0))};
    const Routing routing = rig.MakeRouter().Route(rig.ctx, x, offsets, {});
    const auto dispatcher = MakeDispatcher(kExperts, rig.mesh.part());
    Dispatched dispatched = dispatcher->Start(rig.ctx, x, routing, 0);
    dispatcher->Finish(rig.ctx, dispatched, 0);
    dispatcher->Combine(rig.ctx, dispatched.rows, dispatched, 0);
    EXPECT_TRUE(rig.groups.failure.ok()) << Message(rig.groups.failure);
    bytes[static_cast<size_t>(world.rank())] = rig.bytes;
  });
  return bytes;
}

// Together the tensor-parallel ranks of an expert send what each of them would alone.
TEST(AllToAllDispatcher, NoRankSendsWhatAnotherSends) {
  const Layout layout = LayoutOf(2, 2);
  const std::vector<int64_t> naive = BytesSent(layout, true), dropped = BytesSent(layout, false);
  for (size_t r = 0; r < kRanks; r += 2) {
    EXPECT_GT(naive[r], 0);
    EXPECT_EQ(naive[r], naive[r + 1]);
    EXPECT_EQ(dropped[r] + dropped[r + 1], naive[r]);
  }
}

}  // namespace
}  // namespace cadre::moe
