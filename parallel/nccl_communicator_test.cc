// The cases of communicator_test.cc on device groups: over a fake NCCL in host memory everywhere,
// and over NCCL itself where there are GPUs, one for each rank.
#include "parallel/nccl_communicator.h"

#include <cmath>

#include <gtest/gtest.h>

#include "parallel/nccl_test_ranks.h"
#include "parallel/test_tensors.h"

namespace cadre {
namespace {

struct Backend {
  bool gpu;
  int ranks;
};

class DeviceGroups : public testing::TestWithParam<Backend> {
 protected:
  void SetUp() override {
    if (!GetParam().gpu) return;
    if (const std::string why = WhyNoNccl(); !why.empty()) GTEST_SKIP() << why;
    const int last = GetParam().ranks - 1;
    if (auto device = OpenNcclDevice({.index = last}); !device.ok()) {
      GTEST_SKIP() << "one GPU for each of " << GetParam().ranks
                   << " ranks: " << Message(device.status());
    }
  }
  int size() const { return GetParam().ranks; }
  void Run(const std::function<void(DeviceRank&)>& body) {
    if (GetParam().gpu) {
      RunDeviceRanks(
          size(), [](int rank) { return OpenNcclDevice({.index = rank}); }, body);
    } else {
      RunDeviceRanks(size(), Fakes(nccl_), body);
      EXPECT_EQ(nccl_.links, 0);
      EXPECT_EQ(nccl_.aborted, 0);
    }
  }
  // NCCL promises no order of sums.
  void ExpectSum(const Tensor& got, const Tensor& want) const {
    if (!GetParam().gpu || got.dtype() == DType::kI32) return ExpectSameBits(got, want);
    double error = 0, norm = 0;
    VisitFloat(got.dtype(), [&](auto type) {
      using T = decltype(type);
      for (int64_t i = 0; i < got.numel(); ++i) {
        const auto expected = static_cast<double>(want.data<T>()[i]);
        error += std::pow(static_cast<double>(got.data<T>()[i]) - expected, 2);
        norm += std::pow(expected, 2);
      }
    });
    const double most = got.dtype() == DType::kF64   ? 1e-12
                        : got.dtype() == DType::kF32 ? 1e-5
                                                     : 1e-2;
    EXPECT_LE(std::sqrt(error), most * std::sqrt(norm)) << Name(got.dtype());
  }

  FakeNccl nccl_;
};
INSTANTIATE_TEST_SUITE_P(Fake, DeviceGroups,
                         testing::Values(Backend{false, 1}, Backend{false, 2}, Backend{false, 3},
                                         Backend{false, 5}),
                         [](const auto& info) { return std::to_string(info.param.ranks); });
INSTANTIATE_TEST_SUITE_P(Gpu, DeviceGroups,
                         testing::Values(Backend{true, 1}, Backend{true, 2}, Backend{true, 8}),
                         [](const auto& info) { return std::to_string(info.param.ranks); });

TEST_P(DeviceGroups, AllReduce) {
  const int n = size();
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    int salt = 0;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32}) {
      for (const int64_t numel : {0, 1, 1024, 20003}) {
        for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kAverage}) {
          if (dtype == DType::kI32 && op == ReduceOp::kAverage) continue;
          const Tensor buffer =
              rank.Upload(Brought(rank.memory, rank.world.rank(), numel, dtype, ++salt));
          ASSERT_TRUE(group->AllReduce(buffer, op, {"test"})->Wait().ok());
          ExpectSum(rank.Download(buffer), Expected(rank.memory, n, numel, dtype, op, salt));
        }
      }
    }
  });
}

TEST_P(DeviceGroups, ReduceScatterThenAllGatherIsAllReduce) {
  const int n = size();
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    for (const int64_t each : {0, 1, 640, 7001}) {
      const Tensor input =
          rank.Upload(Brought(rank.memory, rank.world.rank(), each * n, DType::kF32));
      const Tensor part = rank.Empty({each}, DType::kF32);
      ASSERT_TRUE(group->ReduceScatter(input, part, ReduceOp::kSum, {"test"})->Wait().ok());
      const Tensor whole = rank.Empty({each * n}, DType::kF32);
      ASSERT_TRUE(group->AllGather(part, whole, {"test"})->Wait().ok());
      ExpectSum(rank.Download(whole),
                Expected(rank.memory, n, each * n, DType::kF32, ReduceOp::kSum));
    }
  });
}

TEST_P(DeviceGroups, RaggedReduceScatterAndGatherInPlace) {
  const int n = size();
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    std::vector<int64_t> rows;
    for (int r = 0; r < n; ++r) rows.push_back((r * 7001) % 14000);
    const auto me = static_cast<size_t>(rank.world.rank());
    const int64_t sum = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const int64_t begin =
        std::accumulate(rows.begin(), rows.begin() + rank.world.rank(), int64_t{0});
    const Tensor buffer = rank.Upload(Brought(rank.memory, rank.world.rank(), sum, DType::kF32));
    const Tensor mine = buffer.Narrow(begin, rows[me]);
    ASSERT_TRUE(group->ReduceScatterV(buffer, mine, rows, ReduceOp::kSum, {"test"})->Wait().ok());
    const Tensor expected = Expected(rank.memory, n, sum, DType::kF32, ReduceOp::kSum);
    ExpectSum(rank.Download(mine), expected.Narrow(begin, mine.numel()));
    ASSERT_TRUE(group->AllGatherV(mine, buffer, rows, {"test"})->Wait().ok());
    ExpectSum(rank.Download(buffer), expected);
  });
}

TEST_P(DeviceGroups, AllToAll) {
  const int n = size();
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    const int me = rank.world.rank();
    Tensor even = Tensor::Empty(rank.memory, {2 * n}, DType::kI32);
    for (int i = 0; i < 2 * n; ++i) even.data<int32_t>()[i] = 1000 * me + i;
    const Tensor turned = rank.Empty({2 * n}, DType::kI32);
    ASSERT_TRUE(group->AllToAll(rank.Upload(even), turned, {"test"})->Wait().ok());
    const Tensor got = rank.Download(turned);
    for (int i = 0; i < 2 * n; ++i) {
      EXPECT_EQ(got.data<int32_t>()[i], 1000 * (i / 2) + 2 * me + i % 2);
    }
    const auto rows = [](int from, int to) { return int64_t{30} * ((from + 2 * to) % 5); };
    std::vector<int64_t> send, receive;
    for (int r = 0; r < n; ++r) send.push_back(rows(me, r));
    for (int r = 0; r < n; ++r) receive.push_back(rows(r, me));
    Tensor out = Tensor::Empty(
        rank.memory, {std::accumulate(send.begin(), send.end(), int64_t{0}), 4}, DType::kI32);
    int32_t* next = out.data<int32_t>();
    for (int r = 0; r < n; ++r) {
      next = std::fill_n(next, 4 * send[static_cast<size_t>(r)], 10 * me + r);
    }
    const Tensor in =
        rank.Empty({std::accumulate(receive.begin(), receive.end(), int64_t{0}), 4}, DType::kI32);
    ASSERT_TRUE(group->AllToAllV(rank.Upload(out), send, in, receive, {"test"})->Wait().ok());
    const Tensor came = rank.Download(in);
    const int32_t* seen = came.data<int32_t>();
    for (int r = 0; r < n; ++r) {
      for (int64_t i = 0; i < 4 * receive[static_cast<size_t>(r)]; ++i) {
        ASSERT_EQ(*seen++, 10 * r + me);
      }
    }
  });
}

TEST_P(DeviceGroups, BroadcastFromEachRoot) {
  const int n = size();
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    for (int root = 0; root < n; ++root) {
      for (const int64_t numel : {0, 3, 30000}) {
        const Tensor buffer =
            rank.Upload(Brought(rank.memory, rank.world.rank(), numel, DType::kF32, root));
        ASSERT_TRUE(group->Broadcast(buffer, root, {"test"})->Wait().ok());
        ExpectSameBits(rank.Download(buffer), Brought(rank.memory, root, numel, DType::kF32, root));
      }
    }
  });
}

// Each sends before it receives, which only directions that do not wait for one another survive.
TEST_P(DeviceGroups, PointToPointInOrderBesideCollectives) {
  const int n = size();
  if (n == 1) return;
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    const int me = rank.world.rank(), next = (me + 1) % n, before = (me + n - 1) % n;
    std::vector<WorkPtr> works;
    std::vector<Tensor> got;
    for (int i = 0; i < 20; ++i) {
      const int64_t numel = i % 3 == 0 ? 50000 : i % 7;
      const Tensor sent = rank.Upload(Brought(rank.memory, me, numel, DType::kF32, i));
      works.push_back(group->Send(sent, next, {"ring", i}));
      got.push_back(rank.Empty({numel}, DType::kF32));
      works.push_back(group->Receive(got.back(), before, {"ring", i}));
      if (i % 5 == 0) works.push_back(group->Barrier({"between"}));
    }
    for (const WorkPtr& work : works) ASSERT_TRUE(work->Wait().ok());
    for (int i = 0; i < 20; ++i) {
      const Tensor& there = got[static_cast<size_t>(i)];
      ExpectSameBits(rank.Download(there),
                     Brought(rank.memory, before, there.numel(), DType::kF32, i));
    }
  });
}

TEST_P(DeviceGroups, SeveralInFlightAreDoneWhileNobodyWaits) {
  const int n = size();
  Run([&](DeviceRank& rank) {
    auto group = rank.NewGroup("all", All(n));
    auto alone = rank.NewGroup("alone", {rank.world.rank()});
    std::vector<Tensor> buffers;
    std::vector<WorkPtr> works;
    for (int i = 0; i < 10; ++i) {
      Communicator& each = i % 3 == 0 ? *alone : *group;
      buffers.push_back(rank.Upload(Brought(rank.memory, each.rank(), 5000, DType::kF32, i)));
      works.push_back(each.AllReduce(buffers.back(), ReduceOp::kSum, {"bucket", i}));
    }
    for (const WorkPtr& work : works) {
      while (!work->done()) std::this_thread::yield();
      EXPECT_TRUE(work->Wait().ok());
    }
    for (int i = 0; i < 10; ++i) {
      const Tensor got = rank.Download(buffers[static_cast<size_t>(i)]);
      ExpectSum(got,
                Expected(rank.memory, i % 3 == 0 ? 1 : n, 5000, DType::kF32, ReduceOp::kSum, i));
    }
  });
}

}  // namespace
}  // namespace cadre
