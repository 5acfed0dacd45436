#include "core/ops/dropout.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

struct Rig {
  HostAllocator allocator;
  Tape tape{&Accumulate};
  Context ctx{.allocator = &allocator, .threads = 2, .tape = &tape, .seed = 11, .step = 4};

  Tensor Tokens(int64_t first, int64_t count) {
    std::vector<int64_t> tokens(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), first);
    return Tensor::Of<int64_t>(allocator, {count}, tokens);
  }
  Tensor Ones(int64_t rows, int64_t d) {
    std::vector<float> ones(static_cast<size_t>(rows * d), 1.0f);
    return Tensor::Of<float>(allocator, {rows, d}, ones);
  }
  Tensor Drop(int64_t first, int64_t rows, uint32_t site = 0) {
    return Dropout(ctx, {Ones(rows, 37)}, {0.3, site, Tokens(first, rows)}).value;
  }
};

TEST(Dropout, DropsTheRateAndKeepsTheMean) {
  Rig rig;
  Tensor y = rig.Drop(0, 2000);
  int64_t zeros = 0;
  for (float value : y.span<float>()) {
    zeros += value == 0;
    EXPECT_TRUE(value == 0 || value == static_cast<float>(1 / 0.7)) << value;
  }
  EXPECT_NEAR(static_cast<double>(zeros) / static_cast<double>(y.numel()), 0.3, 0.01);
}

TEST(Dropout, DependsOnTheGlobalTokenStepAndSite) {
  Rig rig;
  Tensor whole = rig.Drop(0, 20);
  EXPECT_TRUE(SameBits(rig.Drop(8, 12), whole.Narrow(8, 12)));
  EXPECT_FALSE(SameBits(rig.Drop(0, 20, 1), whole));
  rig.ctx.step = 5;
  EXPECT_FALSE(SameBits(rig.Drop(0, 20), whole));
}

TEST(Dropout, TheGradientHasTheSameMask) {
  Rig rig;
  Var x{rig.Ones(6, 37), rig.tape.NewSlot()};
  rig.tape.KeepGrad(x.slot);
  Var y = Dropout(rig.ctx, x, {0.3, 0, rig.Tokens(0, 6)});
  rig.tape.Seed(y.slot, rig.Ones(6, 37));
  rig.tape.Backward(rig.ctx);
  EXPECT_TRUE(SameBits(rig.tape.Grad(rig.ctx, x.slot), y.value));
}

TEST(Dropout, IsTheIdentityInInference) {
  Rig rig;
  rig.ctx.tape = nullptr;
  EXPECT_TRUE(SameBits(rig.Drop(0, 3), rig.Ones(3, 37)));
}

}  // namespace
}  // namespace cadre::ops
