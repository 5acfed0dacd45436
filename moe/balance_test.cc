#include "moe/balance.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "core/tape.h"

namespace cadre::moe {
namespace {

TEST(ExpertLoad, CountsAndSkew) {
  HostAllocator allocator;
  std::vector<int32_t> ids = {0, 1, 0, 2, 0, 3};
  ExpertLoad load(4);
  EXPECT_EQ(load.MaxOverMean(), 0.0);
  load.Add(Tensor::Of<int32_t>(allocator, {3, 2}, std::span<const int32_t>(ids)));
  EXPECT_EQ(std::vector<int64_t>(load.counts().begin(), load.counts().end()),
            (std::vector<int64_t>{3, 1, 1, 1}));
  EXPECT_DOUBLE_EQ(load.MaxOverMean(), 2.0);
  load.Clear();
  EXPECT_EQ(load.MaxOverMean(), 0.0);
}

TEST(RouterBias, MovesTowardsTheMean) {
  HostAllocator allocator;
  ParameterStore store;
  ParamId id = store.Add({.name = "bias", .shape = {4}, .trainable = false, .fp32 = true});
  store.Allocate(allocator, DType::kBF16, {});
  Context ctx{.allocator = &allocator, .parameters = &store};
  uint64_t version = store.version();
  // The mean is 2.5: no count equals it; then 2, where two do.
  UpdateRouterBias(ctx, id, std::vector<int64_t>{4, 3, 2, 1}, 0.001);
  UpdateRouterBias(ctx, id, std::vector<int64_t>{2, 3, 2, 1}, 0.001);
  LeasedWeight bias(ctx, id, Lease::kForward);
  const float* values = bias.tensor().data<float>();
  EXPECT_FLOAT_EQ(values[0], -0.001f);
  EXPECT_FLOAT_EQ(values[1], -0.002f);
  EXPECT_FLOAT_EQ(values[2], 0.001f);
  EXPECT_FLOAT_EQ(values[3], 0.002f);
  EXPECT_GT(store.version(), version);
}

}  // namespace
}  // namespace cadre::moe
