#include "core/ops/layer_norm.h"

#include <gtest/gtest.h>

#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

TEST(LayerNorm, AgreesWithReferenceAndFiniteDifferences) {
  for (int64_t d : {3, 16, 70}) {
    CheckOp({.inputs = {{5, d}},
             .params = {{d}, {d}},
             .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
               return LayerNorm(ctx, x[0], {w[0], w[1], 1e-5f});
             }});
    CheckOp({.inputs = {{5, d}},
             .params = {{d}},
             .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
               return LayerNorm(ctx, x[0], {w[0], kNoParam, 1e-5f});
             }});
  }
}

}  // namespace
}  // namespace cadre::ops
