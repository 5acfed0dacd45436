#include "parallel/combine_ranks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/ops/rms_norm.h"
#include "core/ops/topk_gate.h"
#include "parallel/test_rig.h"

namespace cadre {
namespace {

class CombineRanks : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, CombineRanks, testing::Values(1, 2, 3, 4));

// Columns [begin, begin + count) of x [R, D].
Tensor Columns(Allocator& memory, const Tensor& x, int64_t begin, int64_t count) {
  Tensor y = Tensor::Empty(memory, {x.dim(0), count}, x.dtype());
  const size_t size = SizeOf(x.dtype());
  for (int64_t r = 0; r < x.dim(0); ++r) {
    std::copy_n(x.raw() + static_cast<size_t>(r * x.dim(1) + begin) * size,
                static_cast<size_t>(count) * size, y.raw() + static_cast<size_t>(r * count) * size);
  }
  return y;
}

struct NormRun {
  Tensor y, dx, dw;
};

constexpr int64_t kRows = 5, kWidth = 24;  // 24 is a multiple of 1, 2, 3, 4

// A norm over rows of which this rank has its run of columns.
NormRun Norm(RankRig& rig, DType dtype) {
  const int64_t own = kWidth / rig.size(), begin = own * rig.rank();
  const auto mine = [&](const Shape& shape, uint64_t stream) {
    return Columns(rig.memory, Random(rig.memory, shape, dtype, stream), begin, own);
  };
  const ParamId w = rig.store.Add({.name = "w", .shape = {own}});
  rig.store.Allocate(rig.memory, dtype, {.gradients = true});
  const Tensor weight = mine({1, kWidth}, 1);
  std::copy_n(weight.raw(), weight.bytes(), rig.store.Acquire(w, Lease::kForward).raw());
  rig.store.Release(w, Lease::kForward);
  Var x = rig.Input(mine({kRows, kWidth}, 2));
  Var y = ops::RmsNorm(rig.ctx, x,
                       {.weight = w,
                        .eps = 1e-5F,
                        .width = kWidth,
                        .combine = SumOver(rig.groups.tp, {"q_norm", 1})});
  rig.tape.Seed(y.slot, mine({kRows, kWidth}, 3));
  rig.tape.Backward(rig.ctx);
  return {y.value, rig.GradOf(x), rig.store.Gradient(w).Reshape({1, own})};
}

TEST_P(CombineRanks, ANormOverCutRowsIsThatOfOneProcess) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    RunRigs(GetParam(), [&](RankRig& rig) {
      const NormRun got = Norm(rig, dtype);
      RunRigs(1, [&](RankRig& alone) {
        const NormRun one = Norm(alone, dtype);
        const int64_t own = kWidth / rig.size();
        const auto mine = [&](const Tensor& x) {
          return Columns(rig.memory, x, own * rig.rank(), own);
        };
        EXPECT_LE(Distance(got.y, mine(one.y)), ToleranceOf(dtype));
        EXPECT_LE(Distance(got.dx, mine(one.dx)), ToleranceOf(dtype));
        EXPECT_LE(Distance(got.dw, mine(one.dw)), ToleranceOf(dtype));
      });
    });
  }
}

// The f64 gradient of the cut norm against central differences of all ranks' outputs.
TEST_P(CombineRanks, TheNormsGradientIsThatOfFiniteDifferences) {
  RunRigs(GetParam(), [](RankRig& rig) {
    const int64_t own = kWidth / rig.size();
    const ParamId w = rig.store.Add({.name = "w", .shape = {own}});
    rig.store.Allocate(rig.memory, DType::kF64, {.gradients = true});
    for (double& v : rig.store.Acquire(w, Lease::kForward).span<double>()) v = 0.7;
    rig.store.Release(w, Lease::kForward);
    const auto stream = static_cast<uint64_t>(10 + rig.rank());
    const Tensor probe = Random(rig.memory, {kRows, own}, DType::kF64, 20 + stream);
    const Var x = rig.Input(Random(rig.memory, {kRows, own}, DType::kF64, stream));
    const ops::RmsNormArgs args{w, 1e-5F, kWidth, SumOver(rig.groups.tp, {"q_norm"})};
    const auto total = [&] {  // sum of y * probe over all ranks
      Context ctx = rig.ctx;
      ctx.tape = nullptr;
      const Tensor y = ops::RmsNorm(ctx, x, args).value;
      Tensor sum = Tensor::Zeros(rig.memory, {1}, DType::kF64);
      for (int64_t i = 0; i < y.numel(); ++i) {
        sum.data<double>()[0] += ElementOf(y, i) * ElementOf(probe, i);
      }
      if (rig.size() > 1) SumOver(rig.groups.tp, {"total"})(ctx, sum);
      return sum.data<double>()[0];
    };
    const Var y = ops::RmsNorm(rig.ctx, x, args);
    rig.tape.Seed(y.slot, probe);
    rig.tape.Backward(rig.ctx);
    const Tensor dx = rig.GradOf(x);
    for (int r = 0; r < rig.size(); ++r) {
      for (int64_t i = 0; i < x.value.numel(); i += 7) {
        double* at = x.value.data<double>() + i;
        const double saved = *at, step = r == rig.rank() ? 1e-5 : 0;
        *at = saved + step;
        const double up = total();
        *at = saved - step;
        const double down = total();
        *at = saved;
        if (r != rig.rank()) continue;
        EXPECT_NEAR((up - down) / 2e-5, dx.data<double>()[i], 1e-8);
      }
    }
  });
}

struct BalanceRun {
  double loss;
  Tensor dprobs;
};

constexpr int64_t kTokens = 12, kExperts = 6, kChoices = 2;

// Three sequences of 5, 0 and 7 tokens; this rank has its run of them.
BalanceRun Balance(RankRig& rig, DType dtype) {
  std::vector<int32_t> ids;
  for (int32_t t = 0; t < kTokens; ++t) {
    ids.push_back(t * t % 3);
    ids.push_back(3 + t % 2);
  }
  const Tensor all = Tensor::Of<int32_t>(rig.memory, {kTokens, kChoices}, ids);
  const int64_t own = kTokens / rig.size(), begin = own * rig.rank();
  std::vector<int32_t> offsets;
  for (const int64_t offset : {0, 5, 5, 12}) {
    offsets.push_back(static_cast<int32_t>(std::clamp<int64_t>(offset - begin, 0, own)));
  }
  Var probs = rig.Input(rig.Mine(Random(rig.memory, {kTokens, kExperts}, dtype, 4)));
  Var loss = ops::BalanceLoss(rig.ctx, probs,
                              {.ids = rig.Mine(all),
                               .offsets = offsets,
                               .coefficient = 0.3,
                               .combine = SumOver(rig.groups.tp, {"balance", 2})});
  const std::vector<double> seed = {1.7};
  rig.tape.Seed(loss.slot, Tensor::Of<double>(rig.memory, {1}, seed));
  rig.tape.Backward(rig.ctx);
  if (rig.size() > 1) SumOver(rig.groups.tp, {"total"})(rig.ctx, loss.value);
  return {loss.value.data<double>()[0], rig.GradOf(probs)};
}

TEST_P(CombineRanks, BalanceLossesOfTheRanksAddUpToThatOfOneProcess) {
  for (const DType dtype : {DType::kF64, DType::kF32}) {
    RunRigs(GetParam(), [&](RankRig& rig) {
      const BalanceRun got = Balance(rig, dtype);
      RunRigs(1, [&](RankRig& alone) {
        const BalanceRun one = Balance(alone, dtype);
        EXPECT_NEAR(got.loss, one.loss, 1e-12 * std::abs(one.loss));
        EXPECT_EQ(Distance(got.dprobs, rig.Mine(one.dprobs)), 0);
      });
    });
  }
}

TEST(CombineRanksFailure, IsRecordedAndTheOwnNumbersStay) {
  RunRigs(2, [](RankRig& rig) {
    if (rig.rank() == 1) return;
    const std::vector<float> own = {1, 2, 3};
    Tensor sums = Tensor::Of<float>(rig.memory, {3}, own);
    SumOver(rig.groups.tp, {"q_norm", 7})(rig.ctx, sums);
    EXPECT_THAT(sums.span<float>(), testing::ElementsAre(1, 2, 3));
    EXPECT_THAT(Message(rig.groups.failure), testing::HasSubstr("layer 7 q_norm"));
    FoldSoftmaxOver(rig.groups.tp, {"head"})(rig.ctx, sums.Reshape({3, 1}));
    EXPECT_THAT(sums.span<float>(), testing::ElementsAre(1, 2, 3));
  });
}

}  // namespace
}  // namespace cadre
