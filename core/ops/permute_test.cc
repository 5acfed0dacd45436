#include "core/ops/permute.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using testing::ElementsAre;

PermutationPlan Plan(Context& ctx) {
  std::vector<int32_t> ids = {1, 3, 0, 3, 1, 2, 0, 1, 1, 3};
  return PlanPermutation(ctx, Tensor::Of<int32_t>(*ctx.allocator, {5, 2}, ids), 5);
}

TEST(Permute, SortsByExpertThenToken) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  PermutationPlan plan = Plan(ctx);
  EXPECT_THAT(plan.offsets, ElementsAre(0, 2, 6, 7, 10, 10));
  EXPECT_THAT(plan.token_of.span<int32_t>(), ElementsAre(1, 3, 0, 2, 3, 4, 2, 0, 1, 4));
  EXPECT_THAT(plan.row_of.span<int32_t>(), ElementsAre(2, 7, 0, 8, 3, 6, 1, 4, 5, 9));
}

TEST(Permute, Gradients) {
  for (int64_t d : {3, 37}) {
    CheckOp({.inputs = {{5, d}}, .op = [](Context& ctx, std::span<const Var> x, auto) {
               return Permute(ctx, x[0], Plan(ctx));
             }});
  }
}

// The weights stay fp32 whatever the rows' dtype.
TEST(Unpermute, Gradients) {
  for (int64_t d : {3, 37}) {
    CheckOp({.inputs = {{10, d}, {5, 2}}, .op = [](Context& ctx, std::span<const Var> x, auto) {
               DType real = x[0].value.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
               return Unpermute(ctx, x[0], Cast(ctx, x[1], real), Plan(ctx));
             }});
  }
}

// Token 1 keeps one of its choices, token 2 none.
PermutationPlan PlanWithDrops(Context& ctx) {
  std::vector<int32_t> ids = {1, 3, kDropped, 3, kDropped, kDropped, 0, 1, 1, kDropped};
  return PlanPermutation(ctx, Tensor::Of<int32_t>(*ctx.allocator, {5, 2}, ids), 4);
}

TEST(Permute, DroppedChoicesBecomeNoRows) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  PermutationPlan plan = PlanWithDrops(ctx);
  EXPECT_THAT(plan.offsets, ElementsAre(0, 1, 4, 4, 6));
  EXPECT_THAT(plan.token_of.span<int32_t>(), ElementsAre(3, 0, 3, 4, 0, 1));
  EXPECT_THAT(plan.row_of.span<int32_t>(), ElementsAre(1, 4, -1, 5, -1, -1, 0, 2, 3, -1));
  const std::vector<float> numbers = {1, 2, 3, 4, 5, 6};
  const std::vector<float> weights = {.5f, 2, 9, 3, 9, 9, 1, 10, 4, 9};
  const Tensor y = Unpermute(ctx, {Tensor::Of<float>(allocator, {6, 1}, numbers)},
                             {Tensor::Of<float>(allocator, {5, 2}, weights)}, plan)
                       .value;
  EXPECT_THAT(y.span<float>(), ElementsAre(.5f * 2 + 2 * 5, 3 * 6, 0, 1 + 10 * 3, 4 * 4));
}

TEST(Permute, GradientsWithDrops) {
  for (int64_t d : {3, 37}) {
    CheckOp({.inputs = {{5, d}}, .op = [](Context& ctx, std::span<const Var> x, auto) {
               return Permute(ctx, x[0], PlanWithDrops(ctx));
             }});
    CheckOp({.inputs = {{6, d}, {5, 2}}, .op = [](Context& ctx, std::span<const Var> x, auto) {
               DType real = x[0].value.dtype() == DType::kF64 ? DType::kF64 : DType::kF32;
               return Unpermute(ctx, x[0], Cast(ctx, x[1], real), PlanWithDrops(ctx));
             }});
  }
}

TEST(PermuteDeathTest, RefusesIdsThatAreNotAscending) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  std::vector<int32_t> ids = {3, 1};
  EXPECT_DEATH(PlanPermutation(ctx, Tensor::Of<int32_t>(allocator, {1, 2}, ids), 4),
               "experts 3 and 1 of token 0");
}

}  // namespace
}  // namespace cadre::ops
