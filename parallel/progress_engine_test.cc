#include "parallel/progress_engine.h"

#include <atomic>
#include <future>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/file.h"
#include "core/host_allocator.h"
#include "core/trace.h"
#include "parallel/test_ranks.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::vector<int> All(int size) {
  std::vector<int> ranks(static_cast<size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

TEST(Traces, HaveTheFlightsThatBeganInTheirTime) {
  const std::string path = testing::TempDir() + "/flights.json";
  std::promise<void> begun;
  RunRanks(2, [&](World& world) {
    auto group = world.NewGroup("dp", All(2));
    if (world.rank() == 1) {
      begun.get_future().wait();
      for (int i = 0; i < 3; ++i) EXPECT_TRUE(group->Barrier({"other"})->Wait().ok());
      return;
    }
    auto trace = Trace::Create(path);
    ASSERT_TRUE(trace.ok());
    const WorkPtr before = group->Barrier({"before"});
    world.set_trace(trace->get());
    const WorkPtr during = group->Barrier({"during"});
    begun.set_value();
    EXPECT_TRUE(before->Wait().ok() && during->Wait().ok());
    world.set_trace(nullptr);
    EXPECT_TRUE(group->Barrier({"after"})->Wait().ok());
    EXPECT_TRUE((*trace)->Close().ok());
  });
  auto text = ReadFile(path);
  ASSERT_TRUE(text.ok());
  EXPECT_THAT(*text, HasSubstr("\"dp: during\""));
  EXPECT_THAT(*text, Not(HasSubstr("\"dp: before\"")));
  EXPECT_THAT(*text, Not(HasSubstr("\"dp: after\"")));
}

TEST(Failure, ARankThatLeavesIsNamedWithOperationAndLabel) {
  RunRanks(3, [](World& world) {
    HostAllocator memory;  // nothing of a failed operation outlives it
    auto group = world.NewGroup("dp", All(3));
    if (world.rank() == 1) return;
    const absl::Status status =
        group->AllReduce(Tensor::Zeros(memory, {50000}, DType::kF32), ReduceOp::kSum, {"mlp", 3})
            ->Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(status),
                HasSubstr("rank 1 is lost in all_reduce 'layer 3 mlp' of group dp"));
    // Later ones fail with the same cause, at once.
    EXPECT_EQ(group->Barrier({"after"})->Wait(), status);
    EXPECT_EQ(world.status(), status);
  });
}

// As a rank that gives up by itself does: its groups go before its operations.
TEST(Failure, OperationsInFlightOutliveTheirGroup) {
  std::promise<void> gone;
  RunRanks(2, [&](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("a group whose name lies in memory of its own", All(2));
    if (world.rank() == 1) return gone.get_future().wait();
    std::vector<WorkPtr> works;
    for (int i = 0; i < 3; ++i) {
      works.push_back(group->AllReduce(Tensor::Zeros(memory, {50000}, DType::kF32), ReduceOp::kSum,
                                       {"mlp", i}));
    }
    group = nullptr;
    gone.set_value();
    for (const WorkPtr& work : works) {
      EXPECT_THAT(Message(work->Wait()),
                  HasSubstr("rank 1 is lost in all_reduce 'layer 0 mlp' of group a group whose"));
    }
  });
}

// Ranks 0 and 2 wait for each other's neighbour: the one that sees nothing of the loss is told.
TEST(Failure, ThoseWhoDoNotSeeTheLossAreTold) {
  RunRanks(3, [](World& world) {
    HostAllocator memory;  // nothing of a failed operation outlives it
    auto pair =
        world.NewGroup("pair", world.rank() == 2 ? std::vector<int>{2} : std::vector<int>{0, 1});
    auto other =
        world.NewGroup("other", world.rank() == 1 ? std::vector<int>{1} : std::vector<int>{0, 2});
    if (world.rank() == 1) return;
    if (world.rank() == 0) {
      EXPECT_FALSE(pair->Barrier({"first"})->Wait().ok());
    } else {
      const absl::Status status = other->Barrier({"second"})->Wait();
      EXPECT_THAT(Message(status), HasSubstr("rank 1 is lost in barrier 'first' of group pair"));
    }
  });
}

TEST(Failure, TimeOutNamesWhoDidNotCome) {
  std::promise<void> timed_out;
  std::shared_future<void> others_end = timed_out.get_future().share();
  RunRanks(2,
           [&](World& world) {
             HostAllocator memory;
             auto group = world.NewGroup("dp", All(2));
             const std::string expected =
                 "all_reduce 'loss' of group dp: rank 1 did not come within 0.3 s";
             if (world.rank() == 1) {
               others_end.wait();
               EXPECT_THAT(Message(group->Barrier({"late"})->Wait()), HasSubstr(expected));
               return;
             }
             const absl::Status status =
                 group
                     ->AllReduce(Tensor::Zeros(memory, {10}, DType::kF32), ReduceOp::kSum, {"loss"})
                     ->Wait();
             EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
             EXPECT_THAT(Message(status), HasSubstr(expected));
             timed_out.set_value();
           },
           {.timeout = std::chrono::milliseconds(300)});
}

constexpr char kTimeOut[] = "all_reduce 'loss' of group dp: rank 2 did not come within 1 s";

// Rank 1 was told of a time-out and left, both after this rank had last looked for messages.
class Overtaken final : public Transport {
 public:
  struct State {
    std::atomic<bool> told = false;  // the test sets it, the engine looks
    std::string gave_up;
  };
  explicit Overtaken(State* state) : state_(state) {}

  void Send(int, uint64_t, std::span<const std::byte>, Transfer*) override {}
  void Receive(int, uint64_t, std::span<std::byte>, Transfer*) override {}
  std::optional<PeerLoss> Progress() override {
    if (!state_->told) return std::nullopt;
    return PeerLoss{.peer = 2, .reason = kTimeOut, .announced = true};
  }
  std::optional<PeerLoss> CheckPeers() override {
    state_->told = true;
    return PeerLoss{.peer = 1, .reason = "it has left"};
  }
  void GiveUp(const PeerLoss& loss) override { state_->gave_up = loss.reason; }
  bool Arm() override { return true; }
  size_t one_ring_bytes() const override { return 0; }

 private:
  State* const state_;
};

class FirstCause : public testing::Test {
 protected:
  FirstCause() {
    auto transport = std::make_unique<Overtaken>(&state_);
    peers_ = {{.rank = 0}, {.rank = 1, .transport = transport.get()}};
    ProgressEngine::Options options{.doorbell = &doorbell_, .recorder = recorder_.get()};
    options.transports.push_back(std::move(transport));
    engine_ = std::make_unique<ProgressEngine>(std::move(options));
  }
  static Collective Receive(const Messages& messages) {
    TransferBatch batch(messages);
    batch.Receive(1, 0, {});
    co_await batch;
  }

  Overtaken::State state_;
  Doorbell::State doorbell_ = {};
  std::unique_ptr<FlightRecorder> recorder_ = *FlightRecorder::Create("", 0);
  std::vector<Messages::Peer> peers_;
  std::unique_ptr<ProgressEngine> engine_;
};

TEST_F(FirstCause, IsNotThatATellerLeft) {
  const WorkPtr work = engine_->Start({.info = {.group = "dp", .operation = "recv"},
                                       .messages = {.peers = peers_,
                                                    .rank = 0,
                                                    .communicator = 0,
                                                    .operation = 0,
                                                    .staging = engine_->staging()},
                                       .begin = Receive});
  EXPECT_EQ(Message(work->Wait()), kTimeOut);
  EXPECT_EQ(state_.gave_up, kTimeOut);
}

TEST_F(FirstCause, IsPassedOnByWhoLeaves) {
  state_.told = true;
  engine_.reset();
  EXPECT_EQ(state_.gave_up, kTimeOut);
}

}  // namespace
}  // namespace cadre
