#include "core/ops/activation.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

using Vars = std::span<const Var>;

TEST(Activation, SwiGlu) {
  for (int64_t width : {3, 16, 37}) {
    CheckOp({.inputs = {{5, 2 * width}},
             .op = [](Context& ctx, Vars x, auto) { return SwiGlu(ctx, x[0]); }});
  }
}

TEST(Activation, SwiGluOfGptOssClampsBothSides) {
  CheckOp({.inputs = {{6, 74}},
           .op = [](Context& ctx, Vars x, auto) { return SwiGlu(ctx, x[0], SwiGluArgs::GptOss()); },
           .input_scale = 6.0});
}

TEST(Activation, Gelu) {
  for (GeluForm form : {GeluForm::kErf, GeluForm::kTanh}) {
    CheckOp({.inputs = {{5, 37}},
             .op = [form](Context& ctx, Vars x, auto) { return Gelu(ctx, x[0], form); },
             .input_scale = 2.0});
  }
}

TEST(Activation, Clamp) {
  CheckOp({.inputs = {{5, 37}},
           .op = [](Context& ctx, Vars x, auto) { return Clamp(ctx, x[0], 0.7001f); }});
}

TEST(Activation, SigmoidGate) {
  CheckOp({.inputs = {{5, 37}, {5, 1}},
           .op = [](Context& ctx, Vars x, auto) { return SigmoidGate(ctx, x[0], x[1]); }});
}

// Far out the logistic function must saturate, not overflow into NaN.
TEST(Activation, SaturatesWithoutNan) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  std::vector<float> gate_up = {-1e30f, -200.0f, 200.0f, 1e30f, 1.0f, 1.0f, 1.0f, 1.0f};
  Var y = SwiGlu(ctx, {Tensor::Of<float>(allocator, {1, 8}, gate_up)});
  EXPECT_NEAR(y.value.data<float>()[1], 0.0f, 1e-30f);
  EXPECT_EQ(y.value.data<float>()[2], 200.0f);
  EXPECT_EQ(y.value.data<float>()[3], 1e30f);
  for (float value : y.value.span<float>()) EXPECT_FALSE(std::isnan(value));
}

// An element has the same bits wherever it lies in a row: in a whole vector or in the rest.
TEST(Activation, ElementsDoNotDependOnTheirPlace) {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  std::vector<float> values(61);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.173f * static_cast<float>(i) - 5.0f;
  Tensor whole = Gelu(ctx, {Tensor::Of<float>(allocator, {61}, values)}, GeluForm::kErf).value;
  for (size_t i = 0; i < values.size(); ++i) {
    std::span<const float> one(&values[i], 1);
    Tensor y = Gelu(ctx, {Tensor::Of<float>(allocator, {1}, one)}, GeluForm::kErf).value;
    EXPECT_EQ(y.data<float>()[0], whole.data<float>()[i]);
  }
}

}  // namespace
}  // namespace cadre::ops
