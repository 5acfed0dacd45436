#include "model/initialize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/host_allocator.h"
#include "core/random.h"
#include "core/tape.h"
#include "model/param_builder.h"
#include "model/param_layout.h"

namespace cadre {
namespace {

struct Built {
  HostAllocator allocator;
  ParameterStore store;
  ParamId fused, experts, norm, bias;
};

void Build(Built* b, DType dtype, int threads, uint64_t seed = 7) {
  ParamBuilder params(b->store, 0.02, {});
  b->fused = params.Matrix("qkv", {{"q", 6}, {"k", 2}}, 500);
  b->experts =
      params.Add({.name = "experts",
                  .shape = {2, 6, 4},
                  .sources = {{"e", {2, 4, 6}, 0, ParamSource::Layout::kTransposedInterleaved},
                              {"e", {2, 4, 6}, 1, ParamSource::Layout::kTransposedInterleaved}},
                  .init = params.Normal()});
  b->norm = params.Norm("n", 3);
  b->bias = params.Bias("b", {{"b", 3}});
  b->store.Allocate(b->allocator, dtype, {});
  Context ctx{.allocator = &b->allocator, .threads = threads, .parameters = &b->store};
  InitializeParameters(ctx, seed);
}

template <typename T>
std::span<T> Values(Built& b, ParamId id) {
  Tensor tensor = b.store.Acquire(id, Lease::kForward);
  b.store.Release(id, Lease::kForward);
  return tensor.span<T>();
}

TEST(Initialize, IsAFunctionOfTheStoredTensor) {
  Built b;
  Build(&b, DType::kF32, 2);
  RandomKey q(7, "q"), k(7, "k"), e(7, "e");
  auto fused = Values<float>(b, b.fused);
  EXPECT_EQ(fused[0], static_cast<float>(0.02 * q.Normal(0)));
  EXPECT_EQ(fused[6 * 500 - 1], static_cast<float>(0.02 * q.Normal(6 * 500 - 1)));
  EXPECT_EQ(fused[6 * 500], static_cast<float>(0.02 * k.Normal(0)));
  // Expert 1, row 4 (up row 1: stored column 3), input 2.
  auto experts = Values<float>(b, b.experts);
  EXPECT_EQ(experts[1 * 24 + 4 * 4 + 2], static_cast<float>(0.02 * e.Normal(1 * 24 + 2 * 6 + 3)));
  EXPECT_EQ(Values<float>(b, b.norm)[2], 1.0f);
  EXPECT_EQ(Values<float>(b, b.bias)[2], 0.0f);
}

TEST(Initialize, SameAtAnyThreadCountAndAsFloatInDouble) {
  Built one, two, wide, other;
  Build(&one, DType::kF32, 1);
  Build(&two, DType::kF32, 2);
  Build(&wide, DType::kF64, 2);
  Build(&other, DType::kF32, 2, 8);
  auto a = Values<float>(one, one.fused), b = Values<float>(two, two.fused);
  auto c = Values<float>(other, other.fused);
  auto d = Values<double>(wide, wide.fused);
  double squares = 0;
  int same = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i], b[i]);
    ASSERT_EQ(static_cast<double>(a[i]), d[i]);
    same += a[i] == c[i];
    squares += d[i] * d[i];
  }
  EXPECT_LT(same, 5);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(a.size())), 0.02, 0.001);
}

TEST(ParamLayout, ThereAndBack) {
  using Layout = ParamSource::Layout;
  for (Layout layout : {Layout::kPlain, Layout::kTransposed, Layout::kTransposedInterleaved,
                        Layout::kInterleavedVector}) {
    ParamSource source{"t", {3, 5, 8}, 2, layout};
    if (layout == Layout::kInterleavedVector) source.shape = {3, 8};
    std::vector<float> stored(static_cast<size_t>(SliceElements(source))), logical(stored.size()),
        back(stored.size());
    for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<float>(i);
    auto raw = [](std::vector<float>& v) { return reinterpret_cast<std::byte*>(v.data()); };
    StoredToLogical(source, 4, raw(stored), raw(logical));
    LogicalToStored(source, 4, raw(logical), raw(back));
    EXPECT_EQ(stored, back);
    EXPECT_EQ(stored == logical, layout == Layout::kPlain);
  }
}

TEST(ParamBuilder, Frozen) {
  EXPECT_TRUE(MatchesPattern("model.embed*", "model.embed_tokens.weight"));
  EXPECT_TRUE(MatchesPattern("*.k", "q.k"));
  EXPECT_FALSE(MatchesPattern("model.embed", "model.embed_tokens.weight"));
  auto finish = [](std::vector<std::string> patterns, bool* trainable) {
    ParameterStore store;
    ParamBuilder params(store, 0.02, std::move(patterns));
    ParamId id = params.Matrix("qkv", {{"a.q", 2}, {"a.k", 2}}, 4);
    *trainable = store.spec(id).trainable;
    return Message(params.Finish());
  };
  bool trainable = false;
  EXPECT_EQ(finish({"a.*"}, &trainable), "");
  EXPECT_FALSE(trainable);
  EXPECT_EQ(finish({"b.*"}, &trainable), "frozen_parameters: 'b.*' matches no parameter");
  EXPECT_TRUE(trainable);
  EXPECT_NE(finish({"a.q"}, &trainable).find("a part of qkv"), std::string::npos);
}

}  // namespace
}  // namespace cadre
