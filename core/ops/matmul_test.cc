#include "core/ops/matmul.h"

#include <gtest/gtest.h>

#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

TEST(MatMul, Plain) {
  CheckOp({.inputs = {{5, 17}},
           .params = {{9, 17}},
           .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
             return MatMul(ctx, x[0], {.weight = w[0]});
           }});
}

TEST(MatMul, Bias) {
  CheckOp({.inputs = {{5, 17}},
           .params = {{9, 17}, {9}},
           .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
             return MatMul(ctx, x[0], {.weight = w[0], .bias = w[1]});
           }});
}

TEST(MatMul, InFp32) {
  CheckOp({.inputs = {{5, 17}},
           .params = {{9, 17}, {9}},
           .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
             return MatMul(ctx, x[0], {.weight = w[0], .bias = w[1], .fp32 = true});
           }});
}

TEST(GroupedMatMul, ExpertsWithAndWithoutRows) {
  CheckOp({.inputs = {{11, 17}},
           .params = {{4, 9, 17}, {4, 9}},
           .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
             return GroupedMatMul(ctx, x[0],
                                  {.weight = w[0], .bias = w[1], .offsets = {0, 3, 3, 10, 11}});
           }});
}

TEST(GroupedMatMul, NoRowsAtAll) {
  CheckOp({.inputs = {{0, 17}},
           .params = {{2, 9, 17}},
           .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
             return GroupedMatMul(ctx, x[0], {.weight = w[0], .offsets = {0, 0, 0}});
           }});
}

}  // namespace
}  // namespace cadre::ops
