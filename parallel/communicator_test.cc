#include "parallel/communicator.h"

#include <cmath>
#include <future>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "parallel/reduce.h"
#include "parallel/test_ranks.h"
#include "parallel/test_tensors.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;

TEST(Reduce, OrderAndRounding) {
  const std::vector<float> values = {1e8F, 1.0F, -1e8F};
  std::vector<const std::byte*> sources;
  for (const float& value : values) sources.push_back(reinterpret_cast<const std::byte*>(&value));
  float sum = 0;
  ReduceInRankOrder(DType::kF32, ReduceOp::kSum, sources, 1, reinterpret_cast<std::byte*>(&sum));
  EXPECT_EQ(sum, (1e8F + 1.0F) + -1e8F);
  // bf16 is rounded once: 1 + 2^-8 + 2^-8 is 1 + 2^-7, rounding in between would lose both.
  const BF16 one(1.0F), small(std::ldexp(1.0F, -8));
  sources = {reinterpret_cast<const std::byte*>(&one), reinterpret_cast<const std::byte*>(&small),
             reinterpret_cast<const std::byte*>(&small)};
  BF16 rounded;
  ReduceInRankOrder(DType::kBF16, ReduceOp::kSum, sources, 1,
                    reinterpret_cast<std::byte*>(&rounded));
  EXPECT_EQ(static_cast<float>(rounded), 1.0F + std::ldexp(1.0F, -7));
  const float nan = std::nanf("");
  const float two = 2;
  sources = {reinterpret_cast<const std::byte*>(&two), reinterpret_cast<const std::byte*>(&nan)};
  ReduceInRankOrder(DType::kF32, ReduceOp::kMax, sources, 1, reinterpret_cast<std::byte*>(&sum));
  EXPECT_TRUE(std::isnan(sum));
  const int32_t most = INT32_MAX, more = 1;
  int32_t wrapped = 0;
  sources = {reinterpret_cast<const std::byte*>(&most), reinterpret_cast<const std::byte*>(&more)};
  ReduceInRankOrder(DType::kI32, ReduceOp::kSum, sources, 1,
                    reinterpret_cast<std::byte*>(&wrapped));
  EXPECT_EQ(wrapped, INT32_MIN);
}

TEST(Reduce, AnAverageOfIntegersIsAMistake) {
  int32_t sum = 4;
  const std::vector<const std::byte*> sources = {reinterpret_cast<const std::byte*>(&sum)};
  EXPECT_DEATH(ReduceInRankOrder(DType::kI32, ReduceOp::kAverage, sources, 1,
                                 reinterpret_cast<std::byte*>(&sum)),
               "an average of i32");
  RunRanks(1, [](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", {0});
    const Tensor a = Tensor::Empty(memory, {4}, DType::kI64), b = a;
    EXPECT_DEATH(group->AllReduce(a, ReduceOp::kAverage, {"test"}), "an average of i64");
    EXPECT_DEATH(group->ReduceScatter(a, b, ReduceOp::kAverage, {"test"}), "an average of i64");
    EXPECT_DEATH(group->ReduceScatterV(a, b, std::vector<int64_t>{4}, ReduceOp::kAverage, {"test"}),
                 "an average of i64");
  });
}

class Collectives : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, Collectives, testing::Values(1, 2, 3, 4, 5, 8));

TEST_P(Collectives, AllReduce) {
  const int n = GetParam();
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    int salt = 0;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32}) {
      for (const int64_t numel : {0, 1, 7, 1024, 2048, 2049, 100003, 700001}) {
        for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax, ReduceOp::kAverage}) {
          if (dtype == DType::kI32 && op == ReduceOp::kAverage) continue;
          Tensor buffer = Brought(memory, world.rank(), numel, dtype, ++salt);
          ASSERT_TRUE(group->AllReduce(buffer, op, {"test"})->Wait().ok());
          if (numel < 3000 || world.rank() == n - 1) {
            ExpectSameBits(buffer, Expected(memory, n, numel, dtype, op, salt));
          }
        }
      }
    }
  });
}

TEST_P(Collectives, ReduceScatterThenAllGatherIsAllReduce) {
  const int n = GetParam();
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    for (const int64_t each : {0, 1, 640, 70001}) {
      Tensor input = Brought(memory, world.rank(), each * n, DType::kF32);
      Tensor part = Tensor::Empty(memory, {each}, DType::kF32);
      ASSERT_TRUE(group->ReduceScatter(input, part, ReduceOp::kSum, {"test"})->Wait().ok());
      Tensor whole = Tensor::Empty(memory, {each * n}, DType::kF32);
      ASSERT_TRUE(group->AllGather(part, whole, {"test"})->Wait().ok());
      ExpectSameBits(whole, Expected(memory, n, each * n, DType::kF32, ReduceOp::kSum));
    }
  });
}

TEST_P(Collectives, RaggedReduceScatterInPlace) {
  const int n = GetParam();
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    std::vector<int64_t> rows;
    for (int r = 0; r < n; ++r) rows.push_back((r * 70001) % 140000);
    const int64_t sum = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    const int64_t begin = std::accumulate(rows.begin(), rows.begin() + world.rank(), int64_t{0});
    Tensor buffer = Brought(memory, world.rank(), sum, DType::kF32);
    Tensor mine = buffer.Narrow(begin, rows[static_cast<size_t>(world.rank())]);
    ASSERT_TRUE(group->ReduceScatterV(buffer, mine, rows, ReduceOp::kSum, {"test"})->Wait().ok());
    ExpectSameBits(
        mine, Expected(memory, n, sum, DType::kF32, ReduceOp::kSum).Narrow(begin, mine.numel()));
    ASSERT_TRUE(group->AllGatherV(mine, buffer, rows, {"test"})->Wait().ok());
    ExpectSameBits(buffer, Expected(memory, n, sum, DType::kF32, ReduceOp::kSum));
  });
}

TEST_P(Collectives, GatherInPlaceAndRagged) {
  const int n = GetParam();
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    const int me = world.rank();
    Tensor whole = Tensor::Zeros(memory, {n, 5}, DType::kI32);
    for (int i = 0; i < 5; ++i) whole.data<int32_t>()[5 * me + i] = 100 * me + i;
    ASSERT_TRUE(group->AllGather(whole.Narrow(me, 1), whole, {"test"})->Wait().ok());
    for (int i = 0; i < 5 * n; ++i) EXPECT_EQ(whole.data<int32_t>()[i], 100 * (i / 5) + i % 5);
    std::vector<int64_t> rows(static_cast<size_t>(n));
    for (int r = 0; r < n; ++r) rows[static_cast<size_t>(r)] = (r * 7919) % 5000;
    const int64_t sum = std::accumulate(rows.begin(), rows.end(), int64_t{0});
    Tensor mine = Tensor::Empty(memory, {rows[static_cast<size_t>(me)], 3}, DType::kI32);
    std::fill_n(mine.data<int32_t>(), mine.numel(), me);
    Tensor ragged = Tensor::Empty(memory, {sum, 3}, DType::kI32);
    ASSERT_TRUE(group->AllGatherV(mine, ragged, rows, {"test"})->Wait().ok());
    const int32_t* next = ragged.data<int32_t>();
    for (int r = 0; r < n; ++r) {
      for (int64_t i = 0; i < 3 * rows[static_cast<size_t>(r)]; ++i) ASSERT_EQ(*next++, r);
    }
  });
}

TEST_P(Collectives, AllToAll) {
  const int n = GetParam();
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    const int me = world.rank();
    Tensor even = Tensor::Empty(memory, {2 * n}, DType::kI32);
    for (int i = 0; i < 2 * n; ++i) even.data<int32_t>()[i] = 1000 * me + i;
    Tensor turned = Tensor::Empty(memory, {2 * n}, DType::kI32);
    ASSERT_TRUE(group->AllToAll(even, turned, {"test"})->Wait().ok());
    for (int i = 0; i < 2 * n; ++i) {
      EXPECT_EQ(turned.data<int32_t>()[i], 1000 * (i / 2) + 2 * me + i % 2);
    }
    // Rank a sends (a + 2b) rows to b, times a size that makes some of them large.
    const auto rows = [](int from, int to) { return int64_t{300} * ((from + 2 * to) % 5); };
    std::vector<int64_t> send, receive;
    for (int r = 0; r < n; ++r) send.push_back(rows(me, r));
    for (int r = 0; r < n; ++r) receive.push_back(rows(r, me));
    Tensor out = Tensor::Empty(memory, {std::accumulate(send.begin(), send.end(), int64_t{0}), 4},
                               DType::kI32);
    int32_t* next = out.data<int32_t>();
    for (int r = 0; r < n; ++r)
      next = std::fill_n(next, 4 * send[static_cast<size_t>(r)], 10 * me + r);
    Tensor in = Tensor::Empty(
        memory, {std::accumulate(receive.begin(), receive.end(), int64_t{0}), 4}, DType::kI32);
    ASSERT_TRUE(group->AllToAllV(out, send, in, receive, {"test"})->Wait().ok());
    const int32_t* seen = in.data<int32_t>();
    for (int r = 0; r < n; ++r) {
      for (int64_t i = 0; i < 4 * receive[static_cast<size_t>(r)]; ++i) {
        ASSERT_EQ(*seen++, 10 * r + me);
      }
    }
  });
}

TEST_P(Collectives, BroadcastFromEachRoot) {
  const int n = GetParam();
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    for (int root = 0; root < n; ++root) {
      for (const int64_t numel : {0, 3, 300000}) {
        Tensor buffer = Brought(memory, world.rank(), numel, DType::kF32, root);
        ASSERT_TRUE(group->Broadcast(buffer, root, {"test"})->Wait().ok());
        ExpectSameBits(buffer, Brought(memory, root, numel, DType::kF32, root));
      }
    }
  });
}

TEST_P(Collectives, PointToPointInOrderBesideCollectives) {
  const int n = GetParam();
  if (n == 1) return;
  RunRanks(n, [n](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(n));
    const int me = world.rank(), next = (me + 1) % n, before = (me + n - 1) % n;
    std::vector<WorkPtr> works;
    std::vector<Tensor> got;
    for (int i = 0; i < 20; ++i) {
      const int64_t numel = i % 3 == 0 ? 50000 : 10;
      works.push_back(group->Send(Brought(memory, me, numel, DType::kF32, i), next, {"ring", i}));
      got.push_back(Tensor::Empty(memory, {numel}, DType::kF32));
      works.push_back(group->Receive(got.back(), before, {"ring", i}));
      if (i % 5 == 0) works.push_back(group->Barrier({"between"}));
    }
    for (const WorkPtr& work : works) ASSERT_TRUE(work->Wait().ok());
    for (int i = 0; i < 20; ++i) {
      ExpectSameBits(got[static_cast<size_t>(i)],
                     Brought(memory, before, i % 3 == 0 ? 50000 : 10, DType::kF32, i));
    }
  });
}

TEST(Barrier, NobodyIsThroughBeforeAllAreIn) {
  std::atomic<int> in = 0;
  RunRanks(6, [&in](World& world) {
    auto group = world.NewGroup("all", All(6));
    for (int round = 1; round <= 50; ++round) {
      ++in;
      ASSERT_TRUE(group->Barrier({"test"})->Wait().ok());
      EXPECT_GE(in.load(), 6 * round);
      ASSERT_TRUE(group->Barrier({"test"})->Wait().ok());
    }
  });
}

// Two groups that cross, operations of both in flight at once and in another order on every rank.
TEST(Groups, CrossingGroupsInAnyOrder) {
  RunRanks(4, [](World& world) {
    HostAllocator memory;
    const int me = world.rank();
    auto row = world.NewGroup("row", me < 2 ? std::vector<int>{0, 1} : std::vector<int>{2, 3});
    auto column =
        world.NewGroup("column", me % 2 == 0 ? std::vector<int>{0, 2} : std::vector<int>{1, 3});
    for (int round = 0; round < 40; ++round) {
      const int64_t numel = round % 4 == 0 ? 200000 : 500;
      Tensor a = Brought(memory, row->rank(), numel, DType::kF32, round);
      Tensor b = Brought(memory, column->rank(), numel, DType::kF32, round + 1000);
      WorkPtr first, second;
      if ((me + round) % 2 == 0) {
        first = row->AllReduce(a, ReduceOp::kSum, {"row"});
        second = column->AllReduce(b, ReduceOp::kSum, {"column"});
      } else {
        second = column->AllReduce(b, ReduceOp::kSum, {"column"});
        first = row->AllReduce(a, ReduceOp::kSum, {"row"});
      }
      if (round % 3 == 0) std::swap(first, second);
      ASSERT_TRUE(first->Wait().ok());
      ASSERT_TRUE(second->Wait().ok());
      ExpectSameBits(a, Expected(memory, 2, numel, DType::kF32, ReduceOp::kSum, round));
      ExpectSameBits(b, Expected(memory, 2, numel, DType::kF32, ReduceOp::kSum, round + 1000));
    }
  });
}

// Nobody waits until all are done: the progress threads alone move them.
TEST(Groups, OperationsMoveWhileNobodyWaits) {
  RunRanks(3, [](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(3));
    std::vector<Tensor> buffers;
    std::vector<WorkPtr> works;
    for (int i = 0; i < 10; ++i) {
      buffers.push_back(Brought(memory, world.rank(), 100000, DType::kF32, i));
      works.push_back(group->AllReduce(buffers.back(), ReduceOp::kSum, {"bucket", i}));
    }
    for (const WorkPtr& work : works) {
      while (!work->done()) std::this_thread::yield();
    }
    for (int i = 0; i < 10; ++i) {
      ExpectSameBits(buffers[static_cast<size_t>(i)],
                     Expected(memory, 3, 100000, DType::kF32, ReduceOp::kSum, i));
    }
  });
}

// Several threads of one rank wait at once; one of them drives for all.
TEST(Groups, SeveralWaitersOfOneRank) {
  RunRanks(2, [](World& world) {
    HostAllocator memory;
    auto group = world.NewGroup("all", All(2));
    for (int round = 0; round < 30; ++round) {
      std::vector<WorkPtr> works;
      for (int i = 0; i < 4; ++i) {
        works.push_back(group->AllReduce(Brought(memory, world.rank(), 20000, DType::kF32),
                                         ReduceOp::kSum, {"test", i}));
      }
      std::vector<std::thread> waiters;
      for (const WorkPtr& work : works) {
        waiters.emplace_back([work] { EXPECT_TRUE(work->Wait().ok()); });
      }
      for (std::thread& waiter : waiters) waiter.join();
    }
  });
}

// What all ranks of such a world hear.
std::string Disagreement(const std::vector<WorldOptions>& ranks) {
  const int size = static_cast<int>(ranks.size());
  ThreadRendezvous rendezvous(size);
  std::vector<std::string> heard(ranks.size());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      ThreadBootstrap bootstrap(rendezvous, rank, size);
      const auto world = World::Create(bootstrap, ranks[static_cast<size_t>(rank)]);
      EXPECT_EQ(world.status().code(), absl::StatusCode::kInvalidArgument);
      heard[static_cast<size_t>(rank)] = Message(world.status());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(heard, testing::Each(heard.front()));
  return heard.front();
}

WorldOptions Has(const std::string& program, const std::string& configuration) {
  return {.must_agree = {{"program", program}, {"configuration", configuration}}};
}

TEST(World, RanksThatDisagreeAreNamed) {
  EXPECT_EQ(Disagreement({Has("p", "a"), Has("p", "a"), Has("p", "b")}),
            "configuration: rank 2 has b, ranks 0, 1 have a; all must have the same");
  EXPECT_EQ(Disagreement({Has("q", "b"), Has("p", "a"), Has("p", "a"), Has("p", "b")}),
            "program: rank 0 has q, ranks 1-3 have p; all must have the same");
  EXPECT_EQ(Disagreement({Has("p", "a"), Has("q", "a")}),
            "program: rank 1 has q, rank 0 has p; all must have the same");
  std::vector<WorldOptions> many;
  for (int rank = 0; rank < 6; ++rank) many.push_back(Has("p", fmt::format("c{}", rank)));
  EXPECT_EQ(
      Disagreement(many),
      "configuration: rank 5 has c5, rank 4 has c4, rank 3 has c3, rank 2 has c2 and so on, 6 "
      "in all; all must have the same");
}

TEST(World, TheFieldThatRanksDifferInIsNamed) {
  const auto has = [](const std::string& yaml) {
    return WorldOptions{.must_agree = {{"program", "p"}, {"configuration", "hash " + yaml, yaml}}};
  };
  EXPECT_EQ(
      Disagreement({has("a: 1\nb: {c: 2}\n"), has("a: 1\nb: {c: 2}\n"), has("a: 1\nb: {c: 3}\n")}),
      "configuration: b.c is 3 on rank 2, 2 on ranks 0, 1; all must have the same");
  EXPECT_EQ(Disagreement({has("a: 1\nb: 5\n"), has("a: 2\nc: 7\n"), has("a: 3\n")}),
            "configuration: a is 2 on rank 1, 1 on rank 0 (and 2 more differ); all must have the "
            "same");
  // What cannot be read tells who has what all the same.
  EXPECT_EQ(Disagreement({has("a: ["), has("a: {")}),
            "configuration: rank 1 has hash a: {, rank 0 has hash a: [; all must have the same");
}

TEST(World, RanksThatMustAgreeOnOtherThingsRunAnotherVersion) {
  EXPECT_EQ(Disagreement({Has("p", "a"), Has("p", "a"), {.must_agree = {{"program", "p"}}}}),
            "rank 2 and rank 0 run different versions of the program");
  EXPECT_EQ(Disagreement({Has("p", "a"), {.must_agree = {{"program", "p"}, {"config", "a"}}}}),
            "rank 1 and rank 0 run different versions of the program");
}

}  // namespace
}  // namespace cadre
