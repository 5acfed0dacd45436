#include "moe/moe_layer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/random.h"

namespace cadre::moe {
namespace {

constexpr int64_t kTokens = 7, kHidden = 6, kExperts = 4, kInner = 5, kTopK = 2;

struct Rig {
  HostAllocator allocator;
  ParameterStore store;
  Context ctx;
  RouterParams router;
  ExpertParams experts;
  Tensor x;

  Rig() {
    router.weight = store.Add({.name = "router", .shape = {kExperts, kHidden}});
    experts.gate_up = store.Add({.name = "gate_up", .shape = {kExperts, 2 * kInner, kHidden}});
    experts.down = store.Add({.name = "down", .shape = {kExperts, kHidden, kInner}});
    store.Allocate(allocator, DType::kF64, {.gradients = true});
    ctx = {.allocator = &allocator, .parameters = &store};
    for (ParamId id = 0; id < store.size(); ++id) {
      RandomKey key(1, store.spec(id).name);
      LeasedWeight weight(ctx, id, Lease::kForward);
      for (int64_t i = 0; i < weight.tensor().numel(); ++i) {
        weight.tensor().data<double>()[i] = key.Normal(static_cast<uint64_t>(i));
      }
    }
    x = ctx.Empty({kTokens, kHidden}, DType::kF64);
    for (int64_t i = 0; i < x.numel(); ++i) {
      x.data<double>()[i] = RandomKey(1, "x").Normal(static_cast<uint64_t>(i));
    }
  }

  const double* Weight(ParamId id) {
    Tensor tensor = store.Acquire(id, Lease::kForward);
    store.Release(id, Lease::kForward);
    return tensor.data<double>();
  }

  MoeLayer Layer() {
    return {Router({.experts = kExperts, .top_k = kTopK, .renormalize = true}, router),
            Experts(experts, {}), std::make_shared<LocalDispatcher>(kExperts)};
  }

  // Expert e on token t, by the definition.
  std::vector<double> Expert(int64_t e, int64_t t) {
    const double *up = Weight(experts.gate_up) + e * 2 * kInner * kHidden,
                 *down = Weight(experts.down) + e * kHidden * kInner;
    std::vector<double> inner(kInner), y(kHidden, 0.0);
    auto dot = [&](const double* row) {
      double sum = 0;
      for (int64_t d = 0; d < kHidden; ++d) sum += row[d] * x.data<double>()[t * kHidden + d];
      return sum;
    };
    for (int64_t i = 0; i < kInner; ++i) {
      double gate = dot(up + i * kHidden);
      inner[static_cast<size_t>(i)] =
          gate / (1 + std::exp(-gate)) * dot(up + (kInner + i) * kHidden);
    }
    for (int64_t d = 0; d < kHidden; ++d) {
      for (int64_t i = 0; i < kInner; ++i) {
        y[static_cast<size_t>(d)] += down[d * kInner + i] * inner[static_cast<size_t>(i)];
      }
    }
    return y;
  }
};

TEST(MoeLayer, IsTheWeightedSumOfItsExperts) {
  Rig s;
  std::vector<int32_t> offsets = {0, kTokens};
  MoeLayer::Output out = s.Layer().Forward(s.ctx, {s.x}, offsets, {}, 0);
  const Tensor y = out.y.Wait(s.ctx).value;
  EXPECT_TRUE(out.routing.losses.empty());
  const int32_t* ids = out.routing.ids.data<int32_t>();
  const double* weights = out.routing.weights.value.data<double>();
  for (int64_t t = 0; t < kTokens; ++t) {
    EXPECT_LT(ids[t * kTopK], ids[t * kTopK + 1]);
    EXPECT_NEAR(weights[t * kTopK] + weights[t * kTopK + 1], 1.0, 1e-12);
    for (int64_t d = 0; d < kHidden; ++d) {
      double want = 0;
      for (int64_t j = 0; j < kTopK; ++j) {
        want += weights[t * kTopK + j] * s.Expert(ids[t * kTopK + j], t)[static_cast<size_t>(d)];
      }
      EXPECT_NEAR(y.data<double>()[t * kHidden + d], want, 1e-9);
    }
  }
}

TEST(MoeLayer, LossesComeOnRequestAndEveryExpertReports) {
  Rig s;
  Tape tape(ops::Accumulate);
  s.ctx.tape = &tape;
  std::vector<int> ready;
  s.store.set_bucket_ready([&](int bucket, bool) { ready.push_back(bucket); });
  std::vector<int32_t> offsets = {0, 3, kTokens};
  Var x{s.x, tape.NewSlot()};
  MoeLayer::Output out = s.Layer().Forward(s.ctx, x, offsets, {.balance = 0.1, .z = 0.01}, 0);
  ASSERT_EQ(out.routing.losses.size(), 2u);
  const double one = 1.0;
  for (const Var& loss : out.routing.losses) {
    EXPECT_GT(loss.value.data<double>()[0], 0.0);
    tape.Seed(loss.slot, Tensor::Of<double>(s.allocator, {1}, std::span<const double>(&one, 1)));
  }
  tape.Backward(s.ctx);
  EXPECT_EQ(ready.size(), s.store.buckets().size());
  double norm = 0;
  for (double g : s.store.Gradient(s.router.weight).span<double>()) norm += g * g;
  EXPECT_GT(norm, 0.0);
}

TEST(Router, KindsDiffer) {
  Rig s;
  std::vector<int32_t> offsets = {0, kTokens};
  auto weights = [&](RouterSpec spec) {
    Routing r = Router(spec, s.router).Route(s.ctx, {s.x}, offsets, {});
    double sum = 0;
    for (int64_t j = 0; j < kTopK; ++j) sum += r.weights.value.data<double>()[j];
    return sum;
  };
  RouterSpec spec{.experts = kExperts, .top_k = kTopK};
  EXPECT_LT(weights(spec), 1.0);
  spec.scale = 3.0;
  spec.kind = RouterKind::kSelectedSoftmax;
  EXPECT_NEAR(weights(spec), 3.0, 1e-12);
}

}  // namespace
}  // namespace cadre::moe
