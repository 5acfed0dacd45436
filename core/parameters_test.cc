#include "core/parameters.h"

#include <gtest/gtest.h>

#include "core/host_allocator.h"

namespace cadre {
namespace {

TEST(ParameterStore, ABucketIsReducedInOneWay) {
  HostAllocator allocator;
  ParameterStore store;
  store.Add({.name = "norm", .shape = {4}});
  store.Add({.name = "q", .shape = {4}, .tensor_spread = Spread::kSharded});
  store.Add({.name = "norm2", .shape = {4}});
  store.Add({.name = "partial", .shape = {4}, .partial_gradient = true});
  store.Add({.name = "k", .shape = {4}, .tensor_spread = Spread::kSharded});
  store.Allocate(allocator, DType::kF32, {.gradients = true});
  ASSERT_EQ(store.buckets().size(), 3u);
  EXPECT_EQ(store.buckets()[0].params, (std::vector<ParamId>{0, 2}));
  EXPECT_EQ(store.buckets()[1].params, (std::vector<ParamId>{1, 4}));
  EXPECT_EQ(store.buckets()[1].tensor_spread, Spread::kSharded);
  EXPECT_EQ(store.buckets()[2].params, (std::vector<ParamId>{3}));
  EXPECT_TRUE(store.buckets()[2].partial_gradient);
}

}  // namespace
}  // namespace cadre
