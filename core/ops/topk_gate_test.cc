#include "core/ops/topk_gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/host_allocator.h"
#include "core/ops/columns.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;

struct Rig {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};

  Var Logits(int64_t experts, std::vector<float> values) {
    int64_t tokens = static_cast<int64_t>(values.size()) / experts;
    return {Tensor::Of<float>(allocator, {tokens, experts}, values)};
  }
};

// Gradients of weights and probabilities together. Normal inputs are far from ties on the scale of
// the finite differences.
void CheckGate(TopKGateArgs args) {
  CheckOp({.inputs = {{7, 12}},
           .op =
               [args](Context& ctx, std::span<const Var> x, auto) {
                 Gate gate = TopKGate(ctx, x[0], args);
                 return ConcatColumns(ctx, std::vector<Var>{gate.weights, gate.probs});
               },
           .dtypes = {DType::kF32},
           .input_scale = 1.7});
}

TEST(TopKGate, Gradients) {
  CheckGate({.k = 3});
  CheckGate({.k = 3, .renormalize = false, .scaling = 2.5});
  CheckGate({.k = 3, .score = GateScore::kSigmoid, .scaling = 2.5});
  CheckGate({.k = 2, .score = GateScore::kSigmoid, .renormalize = false});
  CheckGate({.k = 3, .groups = 4, .kept_groups = 2});
  CheckGate({.k = 3,
             .score = GateScore::kSigmoid,
             .groups = 3,
             .kept_groups = 2,
             .group_score = GroupScore::kTopTwoSum});
}

TEST(TopKGate, WeightsWithoutBalanceLossAndTheReverse) {
  CheckOp({.inputs = {{5, 8}},
           .op = [](Context& ctx, std::span<const Var> x,
                    auto) { return TopKGate(ctx, x[0], {.k = 2}).weights; },
           .dtypes = {DType::kF32}});
  CheckOp({.inputs = {{5, 8}},
           .op = [](Context& ctx, std::span<const Var> x,
                    auto) { return TopKGate(ctx, x[0], {.k = 2}).probs; },
           .dtypes = {DType::kF32}});
}

TEST(TopKGate, RenormalizedSoftmaxIsTheSoftmaxOfTheSelected) {
  Rig rig;
  Gate gate = TopKGate(rig.ctx, rig.Logits(4, {1.0f, 3.0f, -2.0f, 2.0f}), {.k = 2});
  EXPECT_THAT(gate.ids.span<int32_t>(), ElementsAre(1, 3));
  EXPECT_NEAR(gate.weights.value.data<float>()[0], 1 / (1 + std::exp(-1.0)), 1e-6);
}

TEST(TopKGate, TiesGoToTheLowerIdAndNanIsNotChosen) {
  Rig rig;
  Gate gate = TopKGate(rig.ctx, rig.Logits(5, {0, 1, 1, 1, 0}), {.k = 2});
  EXPECT_THAT(gate.ids.span<int32_t>(), ElementsAre(1, 2));
  TopKGateArgs sigmoid{.k = 2, .score = GateScore::kSigmoid};
  gate = TopKGate(rig.ctx, rig.Logits(4, {NAN, 0, -9, NAN}), sigmoid);
  EXPECT_THAT(gate.ids.span<int32_t>(), ElementsAre(1, 2));
}

TEST(TopKGate, TheCorrectionChoosesButDoesNotWeigh) {
  Rig rig;
  std::vector<float> bias = {0, 0, 0, 5};
  TopKGateArgs args{.k = 1,
                    .score = GateScore::kSigmoid,
                    .renormalize = false,
                    .correction = Tensor::Of<float>(rig.allocator, {4}, bias)};
  Gate gate = TopKGate(rig.ctx, rig.Logits(4, {2, 1, 0, 0}), args);
  EXPECT_THAT(gate.ids.span<int32_t>(), ElementsAre(3));
  EXPECT_FLOAT_EQ(gate.weights.value.data<float>()[0], 0.5f);
}

// Expert 0 is the best of all; the group of 2 and 3 has the best two together.
TEST(TopKGate, GroupsByMaximumOrByTheirBestTwo) {
  Rig rig;
  Var logits = rig.Logits(6, {3, -9, 2, 2, -9, 1});
  TopKGateArgs args{.k = 2, .score = GateScore::kSigmoid, .groups = 3, .kept_groups = 1};
  EXPECT_THAT(TopKGate(rig.ctx, logits, args).ids.span<int32_t>(), ElementsAre(0, 1));
  args.group_score = GroupScore::kTopTwoSum;
  EXPECT_THAT(TopKGate(rig.ctx, logits, args).ids.span<int32_t>(), ElementsAre(2, 3));
}

// Choice scores below zero must not lose to the experts of dropped groups.
TEST(TopKGate, NegativeChoiceScoresStayInsideTheKeptGroups) {
  Rig rig;
  std::vector<float> bias = {-3, -3, -4, -4};
  TopKGateArgs args{.k = 2,
                    .score = GateScore::kSigmoid,
                    .groups = 2,
                    .kept_groups = 1,
                    .correction = Tensor::Of<float>(rig.allocator, {4}, bias)};
  EXPECT_THAT(TopKGate(rig.ctx, rig.Logits(4, {0, -5, 0, 0}), args).ids.span<int32_t>(),
              ElementsAre(0, 1));
}

TEST(ExpertCounts, PerSegment) {
  Rig rig;
  std::vector<int32_t> ids = {0, 2, 0, 1, 1, 2, 0, 2}, offsets = {0, 1, 1, 4};
  Tensor counts =
      ExpertCounts(rig.ctx, Tensor::Of<int32_t>(rig.allocator, {4, 2}, ids), offsets, 3);
  std::vector<int32_t> want = {1, 0, 1, 0, 0, 0, 2, 2, 2};
  EXPECT_THAT(counts.span<int32_t>(), ElementsAreArray(want));
}

// Every expert equally often and equally likely: each segment adds the coefficient.
TEST(BalanceLoss, IsTheCoefficientWhenBalanced) {
  Rig rig;
  std::vector<int32_t> ids = {0, 1, 2, 3}, offsets = {0, 4};
  Var probs = rig.Logits(4, std::vector<float>(16, 0.25f));
  Var loss =
      BalanceLoss(rig.ctx, probs, {Tensor::Of<int32_t>(rig.allocator, {4, 1}, ids), offsets, 0.3});
  EXPECT_NEAR(loss.value.data<double>()[0], 0.3, 1e-12);
}

TEST(BalanceLoss, Gradients) {
  CheckOp({.inputs = {{6, 5}},
           .op =
               [](Context& ctx, std::span<const Var> x, auto) {
                 std::vector<int32_t> offsets = {0, 2, 6};
                 Gate gate = TopKGate(ctx, x[0], {.k = 2, .score = GateScore::kSigmoid});
                 return BalanceLoss(ctx, gate.probs, {gate.ids, offsets, 0.7});
               },
           .dtypes = {DType::kF32}});
}

TEST(RouterZLoss, Gradients) {
  CheckOp(
      {.inputs = {{6, 5}},
       .op = [](Context& ctx, std::span<const Var> x, auto) { return RouterZLoss(ctx, x[0], 0.4); },
       .dtypes = {DType::kF32}});
}

}  // namespace
}  // namespace cadre::ops
