#include "parallel/token_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "parallel/test_rig.h"

namespace cadre {
namespace {

constexpr int64_t kWidth = 5;
constexpr DType kTypes[] = {DType::kF64, DType::kF32, DType::kBF16};

// The sum over ranks of Random(stream + rank), in f64.
Tensor SumOver(RankRig& rig, const Shape& shape, DType dtype, uint64_t stream) {
  Tensor sum = Tensor::Zeros(rig.memory, shape, DType::kF64);
  for (int r = 0; r < rig.size(); ++r) {
    Tensor part = Random(rig.memory, shape, dtype, stream + static_cast<uint64_t>(r));
    for (int64_t i = 0; i < sum.numel(); ++i) sum.data<double>()[i] += ElementOf(part, i);
  }
  return sum;
}

class TokenOps : public testing::TestWithParam<int> {
 protected:
  // What a rank alone brings.
  static Tensor Own(RankRig& rig, const Shape& shape, DType dtype, uint64_t stream) {
    return Random(rig.memory, shape, dtype, stream + static_cast<uint64_t>(rig.rank()));
  }
  void OnRanks(const std::function<void(RankRig&, DType)>& body) {
    for (const DType dtype : kTypes) {
      RunRigs(GetParam(), [&](RankRig& rig) {
        body(rig, dtype);
        EXPECT_TRUE(rig.groups.failure.ok());
      });
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Sizes, TokenOps, testing::Values(1, 2, 3, 4));

TEST_P(TokenOps, Gather) {
  OnRanks([](RankRig& rig, DType dtype) {
    const Shape whole{6 * rig.size(), kWidth};
    Tensor tokens = Random(rig.memory, whole, dtype, 1);
    Var x = rig.Input(rig.Mine(tokens));
    Var y = GatherTokens(rig.ctx, x, rig.groups.tp, {"test", 3});
    EXPECT_EQ(y.value.shape(), whole);
    EXPECT_EQ(Distance(y.value, tokens), 0);
    rig.tape.Seed(y.slot, Own(rig, whole, dtype, 100));
    rig.tape.Backward(rig.ctx);
    EXPECT_LE(Distance(rig.GradOf(x), rig.Mine(SumOver(rig, whole, dtype, 100))),
              ToleranceOf(dtype));
  });
}

TEST_P(TokenOps, Scatter) {
  OnRanks([](RankRig& rig, DType dtype) {
    const Shape whole{6 * rig.size(), kWidth};
    Var x = rig.Input(Own(rig, whole, dtype, 1));
    Var y = ScatterTokens(rig.ctx, x, rig.groups.tp, {"test", 3});
    EXPECT_LE(Distance(y.value, rig.Mine(SumOver(rig, whole, dtype, 1))), ToleranceOf(dtype));
    Tensor gradient = Random(rig.memory, whole, dtype, 100);
    rig.tape.Seed(y.slot, rig.Mine(gradient));
    rig.tape.Backward(rig.ctx);
    EXPECT_EQ(Distance(rig.GradOf(x), gradient), 0);
  });
}

TEST_P(TokenOps, Reduce) {
  OnRanks([](RankRig& rig, DType dtype) {
    const Shape shape{7, kWidth};
    Tensor own = Own(rig, shape, dtype, 1);
    Var x = rig.Input(own);
    Var y = ReduceTokens(rig.ctx, x, rig.groups.tp, {"test"});
    EXPECT_LE(Distance(y.value, SumOver(rig, shape, dtype, 1)), ToleranceOf(dtype));
    EXPECT_EQ(Distance(x.value, Own(rig, shape, dtype, 1)), 0);
    Tensor gradient = Random(rig.memory, shape, dtype, 100);
    rig.tape.Seed(y.slot, gradient);
    rig.tape.Backward(rig.ctx);
    EXPECT_EQ(Distance(rig.GradOf(x), gradient), 0);
  });
}

TEST_P(TokenOps, Copy) {
  OnRanks([](RankRig& rig, DType dtype) {
    const Shape shape{7, kWidth};
    Var x = rig.Input(Random(rig.memory, shape, dtype, 1));
    Var y = CopyTokens(rig.ctx, x, rig.groups.tp, {"test"});
    EXPECT_EQ(Distance(y.value, x.value), 0);
    Tensor seed = Own(rig, shape, dtype, 100);
    rig.tape.Seed(y.slot, seed);
    rig.tape.Backward(rig.ctx);
    EXPECT_LE(Distance(rig.GradOf(x), SumOver(rig, shape, dtype, 100)), ToleranceOf(dtype));
    EXPECT_EQ(Distance(seed, Own(rig, shape, dtype, 100)), 0);
  });
}

TEST_P(TokenOps, SplitAndJoin) {
  OnRanks([](RankRig& rig, DType dtype) {
    const Shape whole{6 * rig.size(), kWidth};
    Tensor tokens = Random(rig.memory, whole, dtype, 1),
           gradient = Random(rig.memory, whole, dtype, 9);
    Var x = rig.Input(tokens);
    Var own = SplitTokens(rig.ctx, x, rig.groups.tp, {"test"});
    EXPECT_EQ(Distance(own.value, rig.Mine(tokens)), 0);
    Var y = JoinTokens(rig.ctx, ops::Scale(rig.ctx, own, 2), rig.groups.tp, {"test"});
    Var doubled = ops::Scale(rig.ctx, x, 2);
    EXPECT_EQ(Distance(y.value, doubled.value), 0);
    rig.tape.Seed(y.slot, gradient);
    rig.tape.Backward(rig.ctx);
    EXPECT_EQ(Distance(rig.GradOf(x), ops::Scale(rig.ctx, {gradient}, 2).value), 0);
  });
}

// Rank r sends (r + 2 q) % 4 rows to rank q; row i of them holds 1000 r + 10 q + i.
int64_t RowsFrom(int r, int q) { return (r + 2 * q) % 4; }

Tensor Marked(RankRig& rig, DType dtype, bool sent) {
  std::vector<double> marks;
  for (int other = 0; other < rig.size(); ++other) {
    const int from = sent ? rig.rank() : other, to = sent ? other : rig.rank();
    for (int64_t i = 0; i < RowsFrom(from, to); ++i) marks.push_back(64 * from + 8 * to + i);
  }
  Tensor rows = Tensor::Empty(rig.memory, {static_cast<int64_t>(marks.size()), kWidth}, dtype);
  VisitFloat(dtype, [&](auto t) {
    for (int64_t i = 0; i < rows.numel(); ++i) {
      rows.data<decltype(t)>()[i] = static_cast<decltype(t)>(marks[i / kWidth]);
    }
  });
  return rows;
}

RowCounts CountsOf(RankRig& rig) {
  const int64_t n = rig.size();
  Tensor send = Tensor::Empty(rig.memory, {n, 1}, DType::kI32);
  for (int q = 0; q < n; ++q) {
    send.data<int32_t>()[q] = static_cast<int32_t>(RowsFrom(rig.rank(), q));
  }
  Tensor told = ExchangeCounts(rig.ctx, send, 3, rig.groups.tp, {"counts"});
  RowCounts counts;
  for (int q = 0; q < n; ++q) {
    counts.send.push_back(send.data<int32_t>()[q]);
    counts.receive.push_back(told.data<int32_t>()[q]);
  }
  return counts;
}

TEST_P(TokenOps, RowsGoToTheirRanksAndTheirGradientsComeBack) {
  OnRanks([](RankRig& rig, DType dtype) {
    Tensor sent = Marked(rig, dtype, true), received = Marked(rig, dtype, false);
    Var x = rig.Input(sent);
    Var y = AllToAllRows(rig.ctx, x, CountsOf(rig), rig.groups.tp, {"dispatch", 1});
    EXPECT_EQ(y.value.shape(), received.shape());
    EXPECT_EQ(Distance(y.value, received), 0);
    rig.tape.Seed(y.slot, received);
    rig.tape.Backward(rig.ctx);
    EXPECT_EQ(Distance(rig.GradOf(x), sent), 0);
  });
}

// Rank r brings (r + 3) % 4 rows, so the second none.
std::vector<int64_t> Ragged(RankRig& rig) {
  std::vector<int64_t> counts;
  for (int r = 0; r < rig.size(); ++r) counts.push_back((r + 3) % 4);
  return counts;
}

Tensor OwnRows(RankRig& rig, const Tensor& whole) {
  const std::vector<int64_t> counts = Ragged(rig);
  const auto own = counts.begin() + rig.rank();
  return whole.Narrow(std::accumulate(counts.begin(), own, int64_t{0}), *own);
}

TEST_P(TokenOps, GatherAndScatterRows) {
  OnRanks([](RankRig& rig, DType dtype) {
    const std::vector<int64_t> counts = Ragged(rig);
    const Shape whole{std::accumulate(counts.begin(), counts.end(), int64_t{0}), kWidth};
    Tensor rows = Random(rig.memory, whole, dtype, 1);
    Var x = rig.Input(OwnRows(rig, rows)), partial = rig.Input(Own(rig, whole, dtype, 7));
    Var all = GatherRows(rig.ctx, x, counts, rig.groups.tp, {"test", 3});
    Var sum = ScatterRows(rig.ctx, partial, counts, rig.groups.tp, {"test", 3});
    EXPECT_EQ(Distance(all.value, rows), 0);
    EXPECT_LE(Distance(sum.value, OwnRows(rig, SumOver(rig, whole, dtype, 7))), ToleranceOf(dtype));
    rig.tape.Seed(all.slot, Own(rig, whole, dtype, 100));
    if (sum.slot != all.slot) rig.tape.Seed(sum.slot, OwnRows(rig, rows));
    rig.tape.Backward(rig.ctx);
    EXPECT_LE(Distance(rig.GradOf(x), OwnRows(rig, SumOver(rig, whole, dtype, 100))),
              ToleranceOf(dtype));
    EXPECT_EQ(Distance(rig.GradOf(partial), rows), 0);
  });
}

// Two results on their way, awaited in the other order; both gradients come to one input.
TEST_P(TokenOps, SeveralAreInFlight) {
  OnRanks([](RankRig& rig, DType dtype) {
    const Shape whole{2 * rig.size(), kWidth};
    Tensor tokens = Random(rig.memory, whole, dtype, 1);
    Var x = rig.Input(rig.Mine(tokens));
    PendingVar first = StartExchange(rig.ctx, x, {TokenOp::kGather, rig.groups.tp, {"first"}});
    PendingVar second = StartExchange(rig.ctx, x, {TokenOp::kGather, rig.groups.tp, {"second"}});
    Var b = second.Wait(rig.ctx), a = first.Wait(rig.ctx);
    Var y = ops::Add(rig.ctx, a, ops::Scale(rig.ctx, b, 2));
    rig.tape.Seed(y.slot, Own(rig, whole, dtype, 100));
    rig.tape.Backward(rig.ctx);
    Tensor want = rig.Mine(SumOver(rig, whole, dtype, 100));
    for (double& value : want.span<double>()) value *= 3;
    EXPECT_LE(Distance(rig.GradOf(x), want), ToleranceOf(dtype));
  });
}

TEST(TokenOpsFailure, ALostPeerIsRecordedAndTheResultIsZero) {
  RunRigs(2, [](RankRig& rig) {
    if (rig.rank() == 1) return;
    Var x = rig.Input(Random(rig.memory, {3, kWidth}, DType::kF32, 1));
    Var y = GatherTokens(rig.ctx, x, rig.groups.tp, {"attention", 5});
    EXPECT_EQ(y.value.shape(), Shape({6, kWidth}));
    for (float value : y.value.span<float>()) EXPECT_EQ(value, 0);
    EXPECT_THAT(Message(rig.groups.failure), testing::HasSubstr("layer 5 attention"));
    const absl::Status first = rig.groups.failure;
    rig.tape.Seed(y.slot, y.value);
    rig.tape.Backward(rig.ctx);
    EXPECT_EQ(rig.GradOf(x).numel(), 15);
    EXPECT_EQ(rig.groups.failure, first);
  });
}

TEST(TokenOpsFailure, ACountThatCannotBeIsRefused) {
  RunRigs(2, [](RankRig& rig) {
    const std::vector<int32_t> values = {1, rig.rank() == 0 ? 9 : 2};
    Tensor counts = Tensor::Of<int32_t>(rig.memory, {2, 1}, values);
    Tensor told = ExchangeCounts(rig.ctx, counts, 8, rig.groups.tp, {"counts", 2});
    if (rig.rank() == 0) {
      EXPECT_TRUE(rig.groups.failure.ok());
      EXPECT_EQ(told.data<int32_t>()[1], 1);
      return;
    }
    EXPECT_THAT(told.span<int32_t>(), testing::ElementsAre(0, 2));
    EXPECT_EQ(Message(rig.groups.failure),
              "rank 0 of tp announces 9 rows for layer 2 counts, at most 8 are allowed");
  });
}

// What a rank sends itself it still gets, as the exchange of the rows wants it.
TEST(TokenOpsFailure, RowsWhoseCountsNeverCameAreZeros) {
  RunRigs(2, [](RankRig& rig) {
    if (rig.rank() == 1) return;
    const std::vector<int32_t> values = {3, 2};
    const Tensor counts = Tensor::Of<int32_t>(rig.memory, {2, 1}, values);
    const Tensor told = ExchangeCounts(rig.ctx, counts, 8, rig.groups.tp, {"counts"});
    EXPECT_EQ(rig.groups.failure.code(), absl::StatusCode::kUnavailable);
    ASSERT_THAT(told.span<int32_t>(), testing::ElementsAre(3, 0));
    const Var rows = rig.Input(Random(rig.memory, {5, kWidth}, DType::kF32, 1));
    const Var got =
        AllToAllRows(rig.ctx, rows, {.send = {3, 2}, .receive = {3, 0}}, rig.groups.tp, {"rows"});
    EXPECT_EQ(got.value.dim(0), 3);
    rig.tape.Seed(got.slot, Random(rig.memory, {3, kWidth}, DType::kF32, 2));
    rig.tape.Backward(rig.ctx);
    EXPECT_EQ(rig.GradOf(rows).dim(0), 5);
  });
}

TEST(TokenOpsFailure, GatheredCountsAreThoseOfAllRanks) {
  RunRigs(3, [](RankRig& rig) {
    const std::vector<int32_t> values = {rig.rank(), 10 + rig.rank()};
    Tensor counts = Tensor::Of<int32_t>(rig.memory, {2}, values);
    Tensor told = GatherCounts(rig.ctx, counts, 12, rig.groups.tp, {"counts"});
    EXPECT_THAT(told.span<int32_t>(), testing::ElementsAre(0, 10, 1, 11, 2, 12));
    // The last rank's are too many; everybody keeps its own.
    told = GatherCounts(rig.ctx, counts, 11, rig.groups.tp, {"counts", 4});
    EXPECT_EQ(Message(rig.groups.failure),
              "rank 2 of tp announces 12 rows for layer 4 counts, at most 11 are allowed");
    for (int r = 0; r < 3; ++r) {
      EXPECT_EQ(told.data<int32_t>()[2 * r + 1], r == rig.rank() ? 10 + r : 0);
    }
  });
}

}  // namespace
}  // namespace cadre
