#include "core/ops/linear_cross_entropy.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/host_allocator.h"
#include "core/ops/op_check.h"
#include "core/ops/softmax_rows.h"
#include "core/random.h"

namespace cadre::ops {
namespace {

// The gradient with which CheckOp seeds a result of one element: its probe.
float CheckOpSeed() {
  return static_cast<float>(BF16(static_cast<float>(RandomKey(7, "op_check").Normal(0, 5000))));
}

Tensor Targets(Allocator& allocator) {
  std::vector<int32_t> targets = {3, -1, 0, 10, 3, 7, -1, 2, 2};
  return Tensor::Of<int32_t>(allocator, {9}, targets);
}

TEST(LinearCrossEntropy, AgreesWithReferenceAndFiniteDifferences) {
  for (double z : {0.0, 0.05}) {
    for (int64_t chunk : {0, 4}) {
      CheckOp({.inputs = {{9, 24}},
               .params = {{11, 24}},
               .op =
                   [=](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
                     return LinearCrossEntropy(ctx, x[0],
                                               {.weight = w[0],
                                                .targets = Targets(*ctx.allocator),
                                                .scale = 1.0 / 7,
                                                .z_coefficient = z,
                                                .chunk_rows = chunk,
                                                .expected_gradient = CheckOpSeed()})
                         .loss;
                   },
               .finite_difference_tolerance = 1e-6});
    }
  }
}

struct Rig {
  HostAllocator allocator;
  ParameterStore store;
  ParamId weight;
  Context ctx;
  Tensor hidden;

  explicit Rig(DType dtype, int64_t tokens = 9, int64_t vocabulary = 101, int64_t d = 48) {
    weight = store.Add({.name = "w", .shape = {vocabulary, d}});
    store.Allocate(allocator, dtype, {.gradients = true});
    ctx = {.allocator = &allocator, .threads = 2, .parameters = &store};
    Fill(store.Acquire(weight, Lease::kForward), 1);
    hidden = Tensor::Empty(allocator, {tokens, d}, dtype);
    Fill(hidden, 2);
  }
  ~Rig() { store.Release(weight, Lease::kForward); }

  static void Fill(const Tensor& x, uint64_t stream) {
    RandomKey key(5, "linear_cross_entropy_test");
    VisitFloat(x.dtype(), [&](auto t) {
      for (int64_t i = 0; i < x.numel(); ++i) {
        x.data<decltype(t)>()[i] =
            static_cast<decltype(t)>(static_cast<float>(key.Normal(i, stream)));
      }
    });
  }
};

// What a server computes for one token is what a trainer computed for it among others.
TEST(LinearCrossEntropy, LogprobsHaveTheBitsOfEachRowAlone) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Rig rig(dtype);
    Tensor targets = Targets(rig.allocator);
    LinearCrossEntropyArgs args{.weight = rig.weight, .targets = targets, .chunk_rows = 4};
    Tape tape(nullptr);
    Context training = rig.ctx;
    training.tape = &tape;
    Var hidden{rig.hidden, tape.NewSlot()};
    Tensor trained = LinearCrossEntropy(training, hidden, args).logprobs;
    Tensor scored = LinearCrossEntropy(rig.ctx, {rig.hidden}, args).logprobs;
    EXPECT_TRUE(SameBits(trained, scored));
    for (int64_t t = 0; t < 9; ++t) {
      int32_t target = targets.data<int32_t>()[t];
      if (target < 0) continue;
      Tensor logits = Logits(rig.ctx, rig.hidden.Narrow(t, 1), rig.weight);
      std::vector<float> row(logits.span<float>().begin(), logits.span<float>().end());
      float lse = RowLogSumExp(row);
      EXPECT_EQ(trained.data<float>()[t], row[target] - lse);
      LogSoftmaxRow(row, lse, row);
      EXPECT_EQ(trained.data<float>()[t], row[target]);
    }
  }
}

TEST(SoftmaxRows, LargeLogitsStayFinite) {
  std::vector<float> row = {3e4f, -3e4f, 3e4f, 0};
  EXPECT_FLOAT_EQ(RowLogSumExp(row), 3e4f + std::log(2.0f));
  std::vector<float> masked(37, -std::numeric_limits<float>::infinity());
  masked[36] = 1.5f;
  EXPECT_FLOAT_EQ(RowLogSumExp(masked), 1.5f);
}

TEST(LinearCrossEntropyDeathTest, RefusesAnotherSeed) {
  Rig rig(DType::kF32);
  Tape tape(nullptr);
  rig.ctx.tape = &tape;
  LinearCrossEntropyArgs args{.weight = rig.weight, .targets = Targets(rig.allocator)};
  Var loss = LinearCrossEntropy(rig.ctx, {rig.hidden, tape.NewSlot()}, args).loss;
  std::vector<double> two = {2.0};
  tape.Seed(loss.slot, Tensor::Of<double>(rig.allocator, {1}, two));
  EXPECT_DEATH(tape.Backward(rig.ctx), "gradient is 2, computed for 1");
}

}  // namespace
}  // namespace cadre::ops
