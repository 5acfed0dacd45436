#include "core/ops/rms_norm.h"

#include <gtest/gtest.h>

#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

TEST(RmsNorm, AgreesWithReferenceAndFiniteDifferences) {
  for (int64_t d : {3, 16, 37}) {
    CheckOp({.inputs = {{5, d}},
             .params = {{d}},
             .op = [](Context& ctx, std::span<const Var> x, std::span<const ParamId> w) {
               return RmsNorm(ctx, x[0], {w[0], 1e-5f});
             }});
  }
}

}  // namespace
}  // namespace cadre::ops
