#include "model/mlp_block.h"

#include <algorithm>
#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/elementwise.h"
#include "model/initialize.h"
#include "parallel/mesh.h"
#include "parallel/test_group.h"
#include "parallel/test_rig.h"

namespace cadre {
namespace {

constexpr int64_t kTokens = 6, kHidden = 16;

using Events = std::vector<std::string>;

// Notes when operations are started and when somebody first waits for them: "start ep
// all_to_all_v".
class NotingGroup : public ForwardingGroup {
 public:
  NotingGroup(std::unique_ptr<Communicator> group, Events* events)
      : ForwardingGroup(std::move(group)), events_(events) {}

  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override {
    return Noted("reduce_scatter", ForwardingGroup::ReduceScatter(input, output, op, label));
  }
  WorkPtr AllGather(const Tensor& input, const Tensor& output, const OpLabel& label) override {
    return Noted("all_gather", ForwardingGroup::AllGather(input, output, label));
  }
  WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows, const Tensor& output,
                    std::span<const int64_t> receive_rows, const OpLabel& label) override {
    return Noted("all_to_all_v",
                 ForwardingGroup::AllToAllV(input, send_rows, output, receive_rows, label));
  }

 private:
  class NotedWork : public Work {
   public:
    NotedWork(WorkPtr work, std::string event, Events* events)
        : work_(std::move(work)), event_(std::move(event)), events_(events) {}
    absl::Status Wait() override {
      events_->push_back("wait " + event_);
      return work_->Wait();
    }
    bool done() const override { return work_->done(); }

   private:
    WorkPtr work_;
    std::string event_;
    Events* events_;
  };
  WorkPtr Noted(const char* operation, WorkPtr work) {
    const std::string event = name() + " " + operation;
    events_->push_back("start " + event);
    return std::make_shared<NotedWork>(std::move(work), event, events_);
  }

  Events* events_;
};

// One rank's part of a feed-forward half with a shared expert: as a block, or as its two parts.
struct Rig {
  Rig(HostAllocator& allocator, World* world, const Layout& layout, bool apart)
      : memory(allocator),
        mesh(world, layout,
             [this](std::unique_ptr<Communicator> group) {
               return std::make_unique<NotingGroup>(std::move(group), &events);
             }),
        groups(mesh.Groups()) {
    ParamBuilder params(store, 0.3, {}, mesh.part());
    MoeSpec spec{.router = {.experts = 4, .top_k = 2},
                 .intermediate = 8,
                 .shared = SharedExpert::kPlain,
                 .shared_intermediate = 12};
    if (apart) {
      spec.shared = SharedExpert::kNone;
      shared.emplace(kHidden, MlpSpec{.intermediate = spec.shared_intermediate},
                     "model.layers.0.mlp.shared_experts.", params);
    }
    mixture.emplace(kHidden, spec, "model.layers.0.", params);
    store.Allocate(memory, DType::kF32, {.gradients = true});
    ctx = {.allocator = &memory, .threads = 1, .parameters = &store, .groups = &groups};
    InitializeParameters(ctx, 5);
  }

  struct Result {
    Tensor y, dx;
  };
  // Of the parts first the routed experts, then the shared one.
  Result ForwardAndBackward() {
    Tape tape(&ops::Accumulate);
    ctx.tape = &tape;
    Var x{Random(memory, {kTokens, kHidden}, DType::kF32, static_cast<uint64_t>(mesh.rank())),
          tape.NewSlot()};
    tape.KeepGrad(x.slot);
    Var y = mixture->Forward(ctx, x, offsets, {}, 0).y(ctx);
    if (shared.has_value()) y = ops::Add(ctx, y, shared->Forward(ctx, x, 0)(ctx));
    forward_events = events.size();
    tape.Seed(y.slot, Random(memory, {kTokens, kHidden}, DType::kF32, 9));
    tape.Backward(ctx);
    ctx.tape = nullptr;
    EXPECT_TRUE(groups.failure.ok()) << Message(groups.failure);
    return {y.value, tape.Grad(ctx, x.slot)};
  }

  const std::vector<int32_t> offsets = {0, static_cast<int32_t>(kTokens)};
  HostAllocator& memory;
  Events events;
  size_t forward_events = 0;
  Mesh mesh;
  ParallelGroups groups;
  ParameterStore store;
  std::optional<MoeBlock> mixture;
  std::optional<MlpBlock> shared;
  Context ctx;
};

bool SameBits(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

TEST(MoeBlock, OverlapWithTheSharedExpertChangesNoBit) {
  HostAllocator memory;
  for (const Layout& layout :
       {Layout{.tp = 2, .ep = 2, .sequence_parallel = true}, Layout{.dp = 2, .ep = 2}}) {
    RunRanks(2, [&](World& world) {
      Rig block(memory, &world, layout, false), parts(memory, &world, layout, true);
      const Rig::Result got = block.ForwardAndBackward(), want = parts.ForwardAndBackward();
      EXPECT_TRUE(SameBits(got.y, want.y));
      EXPECT_TRUE(SameBits(got.dx, want.dx));
    });
  }
}

// Index of the nth `event` from `begin` on.
size_t Find(const Events& events, const std::string& event, size_t begin, int nth = 1) {
  for (size_t i = begin; i < events.size(); ++i) {
    if (events[i] == event && --nth == 0) return i;
  }
  ADD_FAILURE() << nth << " more '" << event << "' expected in " << testing::PrintToString(events);
  return events.size();
}

// The shared expert ends with a reduce-scatter over its columns, so what is awaited after that one
// has been started is awaited after the expert's products.
TEST(MoeBlock, TheSharedExpertIsComputedWhileTokensTravel) {
  HostAllocator memory;
  RunRanks(2, [&](World& world) {
    Rig rig(memory, &world, {.tp = 2, .ep = 2, .sequence_parallel = true}, false);
    rig.ForwardAndBackward();
    const Events& events = rig.events;
    const size_t sent = Find(events, "start ep all_to_all_v", 0);
    const size_t gathered = Find(events, "start tp all_gather", 0);
    const size_t multiplied = Find(events, "start tp reduce_scatter", 0);
    const size_t came = Find(events, "wait ep all_to_all_v", 0);
    EXPECT_LT(sent, gathered);
    EXPECT_LT(multiplied, came);
    EXPECT_LT(came, rig.forward_events);

    // Backward the second exchange is that of the tokens' gradients.
    const size_t begin = rig.forward_events;
    const size_t back = Find(events, "start ep all_to_all_v", begin, 2);
    const size_t awaited = Find(events, "wait tp all_gather", begin);
    const size_t done = Find(events, "start tp reduce_scatter", begin);
    const size_t home = Find(events, "wait ep all_to_all_v", begin, 2);
    EXPECT_LT(back, awaited);
    EXPECT_LT(done, home);
  });
}

}  // namespace
}  // namespace cadre
