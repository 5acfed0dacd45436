#include "core/ops/columns.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

TEST(Columns, SplitScaleConcatInAnotherOrder) {
  CheckOp({.inputs = {{5, 11}},
           .op =
               [](Context& ctx, std::span<const Var> x, auto) {
                 std::vector<Var> parts = SplitColumns(ctx, x[0], std::vector<int64_t>{2, 8, 1});
                 return ConcatColumns(
                     ctx, std::vector<Var>{parts[2], Scale(ctx, parts[0], 0.5f), parts[1]});
               },
           .finite_difference_tolerance = 1e-5});
}

TEST(Columns, APartWithoutAGradientCountsAsZero) {
  CheckOp({.inputs = {{3, 7}}, .op = [](Context& ctx, std::span<const Var> x, auto) {
             return SplitColumns(ctx, x[0], std::vector<int64_t>{3, 4})[1];
           }});
}

TEST(Columns, KeepsLeadingDimensionsAndValues) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 2};
  std::vector<int32_t> values(2 * 3 * 4);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i);
  Var x{Tensor::Of<int32_t>(allocator, {2, 3, 4}, values)};
  std::vector<Var> parts = SplitColumns(ctx, x, std::vector<int64_t>{1, 3});
  EXPECT_EQ(parts[0].value.shape(), Shape({2, 3, 1}));
  EXPECT_EQ(parts[1].value.data<int32_t>()[3], 5);
  EXPECT_TRUE(SameBits(ConcatColumns(ctx, parts).value, x.value));
}

}  // namespace
}  // namespace cadre::ops
