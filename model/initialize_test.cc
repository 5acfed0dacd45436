#include "model/initialize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/host_allocator.h"
#include "core/random.h"
#include "core/tape.h"
#include "model/param_builder.h"

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

TEST(Initialize, SlicesAreTheWholesOwn) {
  using Layout = ParamSource::Layout;
  Built whole;
  Build(&whole, DType::kBF16, 2);
  Built part;
  ParamBuilder params(part.store, 0.02, {});
  // Rows 2..3 of q and row 1 of k, columns 100..349; of expert 1 gate row 2 and up rows 0..1.
  part.fused = params.Matrix("qkv", {{"q", 6, {2, 2, 100, 250}}, {"k", 2, {1, 1, 100, 250}}}, 500);
  part.experts = params.Add(
      {.name = "experts",
       .shape = {3, 4},
       .sources =
           {{"e", {2, 4, 6}, 1, Layout::kTransposedInterleaved, {.row_begin = 2, .rows = 3}}},
       .init = params.Normal()});
  part.store.Allocate(part.allocator, DType::kBF16, {});
  Context ctx{.allocator = &part.allocator, .threads = 2, .parameters = &part.store};
  InitializeParameters(ctx, 7);
  auto all = Values<BF16>(whole, whole.fused), some = Values<BF16>(part, part.fused);
  ASSERT_EQ(some.size(), 3u * 250);
  const size_t rows[] = {2, 3, 7};
  for (size_t r = 0; r < 3; ++r) {
    for (size_t c = 0; c < 250; ++c) {
      ASSERT_EQ(some[r * 250 + c].bits, all[rows[r] * 500 + 100 + c].bits) << r << " " << c;
    }
  }
  auto experts = Values<BF16>(whole, whole.experts), held = Values<BF16>(part, part.experts);
  ASSERT_EQ(held.size(), 12u);
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(held[i].bits, experts[24 + 2 * 4 + i].bits) << i;
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
