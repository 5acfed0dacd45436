// What goes wrong around device groups, over a fake NCCL.
#include <unistd.h>

#include <atomic>
#include <latch>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/nccl_test_ranks.h"
#include "parallel/test_tensors.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;

TEST(NcclDevice, SaysWhyThereIsNone) {
  const std::string why = WhyNoNccl();
  const auto device = OpenNcclDevice({.index = 1 << 20});
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(device.status()), HasSubstr(why.empty() ? "GPU 1048576" : why));
}

// All that this program needs of the library is there, which takes no GPU.
TEST(NcclDevice, TheLibraryIsLoadedWhenAskedFor) {
  const auto version = NcclVersion();
  if (version.ok()) {
    EXPECT_THAT(*version, testing::MatchesRegex("2\\.[0-9]+\\.[0-9]+"));
  } else {
    EXPECT_EQ(version.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(Message(version.status()), HasSubstr("NCCL"));
  }
}

TEST(DeviceGroupOf, AWorldWithoutGpuIsRefused) {
  RunRanks(1, [](World& world) {
    const auto group = world.NewDeviceGroup("tp", {0});
    EXPECT_EQ(group.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_EQ(Message(group.status()), "group tp: rank 0 has no GPU, NCCL needs one for each rank");
  });
}

TEST(DeviceGroupOf, ARankWithoutAnIdTellsTheOthers) {
  FakeNccl nccl;
  nccl.makes_no_id = 0;
  RunDeviceRanks(3, Fakes(nccl), [](DeviceRank& rank) {
    const auto group = rank.world.NewDeviceGroup("tp", All(3));
    EXPECT_EQ(Message(group.status()),
              "rank 0 of the group made no id for NCCL: ncclGetUniqueId: system error");
    // The world is as good as before.
    auto other = rank.world.NewGroup("cpu", All(3));
    EXPECT_TRUE(other->Barrier({"after"})->Wait().ok());
  });
}

// The stream waits, not the host: an operation that never ends on the device can be waited for.
TEST(DeviceWork, WaitOrdersTheComputeStream) {
  FakeNccl nccl;
  RunDeviceRanks(2, Fakes(nccl), [&](DeviceRank& rank) {
    auto& device = static_cast<FakeNcclDevice&>(rank.device);
    auto group = rank.NewGroup("dp", All(2));
    auto control = rank.world.NewGroup("control", All(2));
    nccl.hangs = true;
    ASSERT_TRUE(control->Barrier({"hangs"})->Wait().ok());
    const int before = device.compute_waits;
    const WorkPtr work = group->Barrier({"never"});
    EXPECT_TRUE(work->Wait().ok());
    EXPECT_EQ(device.compute_waits, before + 1);
    EXPECT_FALSE(work->done());
    ASSERT_TRUE(control->Barrier({"waited"})->Wait().ok());
  });
  EXPECT_EQ(nccl.links, 0);
}

TEST(DeviceFailure, WhoDoesNotComeIsNamed) {
  FakeNccl nccl;
  std::latch timed_out(2);
  RunDeviceRanks(
      3, Fakes(nccl),
      [&](DeviceRank& rank) {
        auto group = rank.NewGroup("dp", All(3));
        if (rank.world.rank() == 1) return timed_out.wait();
        const Tensor buffer = rank.Upload(Brought(rank.memory, 0, 10, DType::kF32));
        const absl::Status status = group->AllReduce(buffer, ReduceOp::kSum, {"mlp", 3})->Wait();
        EXPECT_THAT(
            Message(status),
            HasSubstr("all_reduce 'layer 3 mlp' of group dp: rank 1 did not come within 1 s"));
        EXPECT_EQ(group->Barrier({"after"})->Wait(), rank.world.status());
        timed_out.count_down();
      },
      std::chrono::seconds(1));
  EXPECT_EQ(nccl.links, 0);
}

TEST(DeviceFailure, ALostRankIsNamedWithOperationAndLabel) {
  FakeNccl nccl;
  RunDeviceRanks(3, Fakes(nccl), [](DeviceRank& rank) {
    auto group = rank.NewGroup("dp", All(3));
    if (rank.world.rank() == 1) return;
    const absl::Status status = group->Barrier({"mlp", 3})->Wait();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(Message(status), HasSubstr("rank 1 is lost in barrier 'layer 3 mlp' of group dp"));
  });
}

TEST(DeviceFailure, ADeviceThatDoesNotEndIsNamedAndAborted) {
  FakeNccl nccl;
  RunDeviceRanks(
      2, Fakes(nccl),
      [&](DeviceRank& rank) {
        auto group = rank.NewGroup("dp", All(2));
        auto control = rank.world.NewGroup("control", All(2));
        nccl.hangs = true;
        ASSERT_TRUE(control->Barrier({"hangs"})->Wait().ok());
        const WorkPtr work = group->Barrier({"mlp", 3});
        while (!work->done()) std::this_thread::yield();
        EXPECT_THAT(Message(work->Wait()),
                    testing::ContainsRegex("barrier 'layer 3 mlp' of group dp: rank [01] was not "
                                           "done with it within 1 s"));
      },
      std::chrono::seconds(1));
  EXPECT_EQ(nccl.aborted, 2);
  EXPECT_EQ(nccl.links, 0);
}

TEST(DeviceFailure, WhatNcclReportsReachesAllRanks) {
  for (const bool launch : {true, false}) {
    FakeNccl nccl;
    std::atomic<int> waited = 0;
    RunDeviceRanks(2, Fakes(nccl), [&](DeviceRank& rank) {
      auto group = rank.NewGroup("dp", All(2));
      auto control = rank.world.NewGroup("control", All(2));
      nccl.hangs = true;
      if (launch) nccl.fails_to_launch = 1;
      ASSERT_TRUE(control->Barrier({"hangs"})->Wait().ok());
      const WorkPtr work = group->Barrier({"mlp", 3});
      if (!launch) {
        // The host is not kept, and learns later.
        EXPECT_TRUE(work->Wait().ok());
        ++waited;
        while (waited < 2) std::this_thread::yield();
        nccl.reports_error = 1;
      }
      while (!work->done()) std::this_thread::yield();
      EXPECT_EQ(
          Message(work->Wait()),
          fmt::format("barrier 'layer 3 mlp' of group dp failed on the GPU of rank 1: {}",
                      launch ? "ncclGroupEnd: invalid usage" : "NCCL: remote process exited"));
      EXPECT_EQ(rank.world.status(), work->Wait());
    });
    EXPECT_EQ(nccl.links, 0);
  }
}

// One that is dropped waits for its peers, the others do not wait for it.
TEST(DeviceGroupsEnd, AGroupThatPeersStillHaveHoldsUpNoOther) {
  FakeNccl nccl;
  RunDeviceRanks(2, Fakes(nccl), [](DeviceRank& rank) {
    auto first = rank.NewGroup("first", All(2));
    auto second = rank.NewGroup("second", All(2));
    if (rank.world.rank() == 0) first = nullptr;
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(second->Barrier({"test"})->Wait().ok());
  });
  EXPECT_EQ(nccl.aborted, 0);
  EXPECT_EQ(nccl.links, 0);
}

TEST(DeviceGroupsRecord, OperationsAreInTheFlightRecorder) {
  FakeNccl nccl;
  const std::string path = testing::TempDir() + fmt::format("/nccl_record_{}", getpid());
  auto recorder = FlightRecorder::Create(path, 0);
  ASSERT_TRUE(recorder.ok()) << Message(recorder.status());
  ThreadRendezvous rendezvous(1);
  ThreadBootstrap bootstrap(rendezvous, 0, 1);
  {
    auto world = World::Create(bootstrap, {.recorder = recorder->get(),
                                           .nccl = std::make_shared<FakeNcclDevice>(nccl, 0)});
    auto group = (*world)->NewDeviceGroup("tp", {0});
    ASSERT_TRUE(group.ok());
    const WorkPtr work = (*group)->Barrier({"mlp", 7});
    while (!work->done()) std::this_thread::yield();
  }
  const auto record = ReadFlightRecord(path);
  unlink(path.c_str());
  ASSERT_TRUE(record.ok()) << Message(record.status());
  const OperationRecord& last = record->operations.back();
  EXPECT_EQ(last.label, "layer 7 mlp");
  EXPECT_EQ(last.operation, "barrier");
  EXPECT_EQ(last.group, "tp");
}

}  // namespace
}  // namespace cadre
