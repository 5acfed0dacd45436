#include "training/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/host_allocator.h"
#include "core/random.h"
#include "proto/train_config.pb.h"
#include "training/gradient_norm.h"

namespace cadre {
namespace {

// (i·a + b) mod c / c − 0.5, the values of the PyTorch run below.
float Value(int64_t i, int64_t a, int64_t b, int64_t c) {
  return static_cast<float>(static_cast<double>((i * a + b) % c) / static_cast<double>(c) - 0.5);
}

struct Fixture {
  explicit Fixture(std::vector<ParamSpec> specs, DType dtype, int threads = 1) {
    for (ParamSpec& spec : specs) store.Add(std::move(spec));
    store.Allocate(allocator, dtype, {.gradients = true});
    ctx = {.allocator = &allocator, .threads = threads, .parameters = &store};
  }
  std::unique_ptr<Optimizer> Make(const config::OptimizerConfig& config) {
    auto optimizer = MakeOptimizer(config, store, allocator);
    CADRE_CHECK(optimizer.ok(), "{}", Message(optimizer.status()));
    return std::move(*optimizer);
  }
  Tensor Weight(ParamId id) { return store.View(store.buckets()[store.bucket_of(id)].weights, id); }

  HostAllocator allocator;
  ParameterStore store;
  Context ctx;
};

config::OptimizerConfig Config() {
  config::OptimizerConfig config;
  config.set_lr(0.01);
  config.set_beta1(0.9);
  config.set_beta2(0.95);
  config.set_weight_decay(0.1);
  return config;
}

// Four steps of torch.optim.AdamW (torch 2, foreach and fused off) over a decaying and a plain
// parameter, gradients clipped to 0.5 by clip_grad_norm_: norms before clipping, then the weights.
TEST(AdamW, MatchesPyTorch) {
  const double norms[] = {0.7372322678565979, 0.7915288805961609, 0.7612322568893433,
                          0.7211297154426575};
  const float weights[4][5] = {
      {-0.217045456f, 0.4186818f, 0.0554090962f, -0.327863634f, 0.307863653f},
      {-0.206902444f, 0.427880347f, 0.0606398322f, -0.335620016f, 0.311619878f},
      {-0.196828648f, 0.436219275f, 0.0579092205f, -0.332538247f, 0.316590965f},
      {-0.186840445f, 0.44256705f, 0.0519166589f, -0.327621937f, 0.319635183f}};
  const float biases[4][3] = {{-0.413076937f, -0.0284615401f, 0.356153846f},
                              {-0.403203696f, -0.019395899f, 0.355982661f},
                              {-0.393483698f, -0.0131935179f, 0.350248933f},
                              {-0.384015679f, -0.0123054376f, 0.342991441f}};
  Fixture f(
      {{.name = "w", .shape = {5, 1}}, {.name = "b", .shape = {3}, .decay = DecayKind::kNoDecay}},
      DType::kF32);
  for (int64_t i = 0; i < 5; ++i) f.Weight(0).data<float>()[i] = Value(i, 7, 3, 11);
  for (int64_t i = 0; i < 3; ++i) f.Weight(1).data<float>()[i] = Value(i, 5, 1, 13);
  auto optimizer = f.Make(Config());
  auto chunks = TrainableChunks(f.store);
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t i = 0; i < 5; ++i) f.store.Gradient(0).data<float>()[i] = Value(i, 3 + t, t, 17);
    for (int64_t i = 0; i < 3; ++i)
      f.store.Gradient(1).data<float>()[i] = Value(i, 2 + t, t + 4, 19);
    uint64_t version = f.store.version();
    double norm = std::sqrt(SquaredNorm(f.ctx, f.store, chunks));
    EXPECT_NEAR(norm, norms[t], 1e-7);
    optimizer->Step(f.ctx, {.lr = 0.01, .gradient_scale = ClipFactor(norm, 0.5)});
    EXPECT_GT(f.store.version(), version);
    for (int64_t i = 0; i < 5; ++i) EXPECT_NEAR(f.Weight(0).data<float>()[i], weights[t][i], 6e-8);
    for (int64_t i = 0; i < 3; ++i) EXPECT_NEAR(f.Weight(1).data<float>()[i], biases[t][i], 6e-8);
  }
  EXPECT_EQ(optimizer->updates(), 4);
}

std::vector<ParamSpec> MixedSpecs() {
  return {{.name = "embed", .shape = {37, 19}, .decay = DecayKind::kNoDecay},
          {.name = "l0.w", .shape = {211, 173}, .layer = 0},
          {.name = "l0.norm", .shape = {173}, .decay = DecayKind::kNoDecay, .layer = 0},
          {.name = "l0.frozen", .shape = {50}, .layer = 0, .trainable = false},
          {.name = "l1.w", .shape = {3, 5}, .layer = 1},
          {.name = "l1.router", .shape = {7}, .layer = 1, .fp32 = true}};
}

void Fill(Fixture& f, int64_t step) {
  for (ParamId id = 0; id < f.store.size(); ++id) {
    RandomKey key(step, f.store.spec(id).name);
    Tensor weight = f.Weight(id);
    for (int64_t i = 0; i < weight.numel(); ++i) {
      if (step == 0) {
        if (weight.dtype() == DType::kF64) weight.data<double>()[i] = key.Normal(i, 1);
        if (weight.dtype() == DType::kF32)
          weight.data<float>()[i] = static_cast<float>(key.Normal(i, 1));
        if (weight.dtype() == DType::kBF16)
          weight.data<BF16>()[i] = BF16(static_cast<float>(key.Normal(i, 1)));
      }
      if (!f.store.WantsGradient(id)) continue;
      Tensor gradient = f.store.Gradient(id);
      // Through float, so that every dtype sees the same gradients.
      float value = static_cast<float>(key.Normal(i) * (i % 7 == 0 ? 100.0 : 0.01));
      if (gradient.dtype() == DType::kF64) gradient.data<double>()[i] = value;
      if (gradient.dtype() == DType::kF32) gradient.data<float>()[i] = value;
    }
  }
}

void RunSteps(Fixture& f, Optimizer& optimizer, int steps) {
  for (int step = 0; step < steps; ++step) {
    Fill(f, step);
    if (step == 0) optimizer.AdoptWeights();
    optimizer.Step(f.ctx, {.lr = 1e-3, .gradient_scale = 0.5});
  }
}

double At(const Tensor& tensor, int64_t i) {
  return VisitFloat(tensor.dtype(),
                    [&]<typename T>(T) { return static_cast<double>(tensor.data<T>()[i]); });
}

// A plain loop in double, parameter by parameter.
TEST(AdamW, MatchesAPlainReferenceInF64AndF32) {
  for (DType dtype : {DType::kF64, DType::kF32}) {
    Fixture f(MixedSpecs(), dtype);
    auto optimizer = f.Make(Config());
    Fill(f, 0);
    for (ParamId id = 0; id < f.store.size(); ++id) {
      const ParamSpec& spec = f.store.spec(id);
      double wd = spec.decay == DecayKind::kDecay ? 0.1 : 0.0;
      int64_t n = spec.shape.numel();
      std::vector<double> w(n), m(n), v(n);
      for (int64_t i = 0; i < n; ++i) w[i] = At(f.Weight(id), i);
      if (spec.trainable) {
        for (int step = 0; step < 3; ++step) {
          RandomKey key(step, spec.name);
          double bias1 = 1 - std::pow(0.9, step + 1), bias2 = 1 - std::pow(0.95, step + 1);
          for (int64_t i = 0; i < n; ++i) {
            double g = 0.5 * static_cast<float>(key.Normal(i) * (i % 7 == 0 ? 100.0 : 0.01));
            m[i] = 0.9 * m[i] + 0.1 * g;
            v[i] = 0.95 * v[i] + 0.05 * g * g;
            w[i] -= 1e-3 * wd * w[i];
            w[i] -= 1e-3 * (m[i] / bias1) / (std::sqrt(v[i] / bias2) + 1e-8);
          }
        }
      }
      Fixture run(MixedSpecs(), dtype);
      auto stepper = run.Make(Config());
      RunSteps(run, *stepper, 3);
      double bound = dtype == DType::kF64 ? 1e-14 : 2e-6;
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_NEAR(At(run.Weight(id), i), w[i], bound * std::max(1.0, std::abs(w[i])))
            << spec.name << " " << i;
      }
    }
  }
}

TEST(AdamW, Bf16WeightsAreTheRoundedMasters) {
  Fixture f(MixedSpecs(), DType::kBF16);
  auto optimizer = f.Make(Config());
  RunSteps(f, *optimizer, 5);
  OptimizerSlot master = optimizer->Slots()[0];
  ASSERT_EQ(master.name, "master");
  for (ParamId id = 0; id < f.store.size(); ++id) {
    const Tensor& flat = master.buckets[f.store.bucket_of(id)];
    Tensor weight = f.Weight(id);
    // Frozen weights have no state, and fp32 weights are their own master.
    ASSERT_EQ(flat.defined(), f.store.spec(id).trainable && weight.dtype() == DType::kBF16);
    if (!flat.defined()) continue;
    Tensor view = f.store.View(flat, id);
    for (int64_t i = 0; i < weight.numel(); ++i) {
      ASSERT_EQ(weight.data<BF16>()[i].bits, BF16(view.data<float>()[i]).bits);
    }
  }
}

// Small updates would be lost if bf16 weights were updated themselves.
TEST(AdamW, MastersKeepUpdatesThatBf16WouldLose) {
  Fixture f({{.name = "w", .shape = {64}, .decay = DecayKind::kNoDecay}}, DType::kBF16);
  for (BF16& value : f.Weight(0).span<BF16>()) value = BF16(1.0f);
  auto optimizer = f.Make(Config());
  for (float& value : f.store.Gradient(0).span<float>()) value = 1.0f;
  for (int step = 0; step < 100; ++step) optimizer->Step(f.ctx, {.lr = 1e-3});
  for (BF16 value : f.Weight(0).span<BF16>()) EXPECT_NEAR(static_cast<float>(value), 0.9f, 5e-3f);
}

TEST(AdamW, SameBitsAtAnyThreadCount) {
  std::vector<std::vector<std::byte>> results;
  std::vector<double> norms;
  for (int threads : {1, 2, 3, 5}) {
    Fixture f(MixedSpecs(), DType::kBF16, threads);
    auto optimizer = f.Make(Config());
    RunSteps(f, *optimizer, 3);
    norms.push_back(std::sqrt(SquaredNorm(f.ctx, f.store, TrainableChunks(f.store))));
    std::vector<std::byte>& all = results.emplace_back();
    for (const OptimizerSlot& slot : optimizer->Slots()) {
      for (const Tensor& t : slot.buckets) {
        if (t.defined()) all.insert(all.end(), t.raw(), t.raw() + t.bytes());
      }
    }
    for (const ParamBucket& b : f.store.buckets()) {
      all.insert(all.end(), b.weights.raw(), b.weights.raw() + b.weights.bytes());
    }
    EXPECT_EQ(results.back(), results.front()) << threads;
    EXPECT_EQ(norms.back(), norms.front()) << threads;
  }
}

TEST(AdamW, DecayKindsChooseParameters) {
  for (auto [kind, embed, norm] : {std::tuple(config::DECAY_KIND_MATRICES, false, false),
                                   {config::DECAY_KIND_MATRICES_AND_EMBEDDINGS, true, false},
                                   {config::DECAY_KIND_ALL, true, true}}) {
    Fixture f(MixedSpecs(), DType::kF32);
    auto config = Config();
    config.set_decay(kind);
    for (ParamId id = 0; id < f.store.size(); ++id) {
      for (float& value : f.Weight(id).span<float>()) value = 1.0f;
    }
    auto optimizer = f.Make(config);
    optimizer->Step(f.ctx, {.lr = 0.5});  // no gradients: decay alone moves weights
    EXPECT_FLOAT_EQ(f.Weight(0).data<float>()[0], embed ? 0.95f : 1.0f);
    EXPECT_FLOAT_EQ(f.Weight(1).data<float>()[0], 0.95f);
    EXPECT_FLOAT_EQ(f.Weight(2).data<float>()[0], norm ? 0.95f : 1.0f);
    EXPECT_FLOAT_EQ(f.Weight(3).data<float>()[0], 1.0f);
  }
}

TEST(GradientNorm, CountsEachElementOnceAndSeesNonFinite) {
  for (DType dtype : {DType::kF64, DType::kBF16}) {
    Fixture f(MixedSpecs(), dtype);
    Fill(f, 0);
    long double sum = 0;
    for (ParamId id = 0; id < f.store.size(); ++id) {
      if (!f.store.WantsGradient(id)) continue;
      Tensor gradient = f.store.Gradient(id);
      for (int64_t i = 0; i < gradient.numel(); ++i) sum += At(gradient, i) * At(gradient, i);
    }
    auto chunks = TrainableChunks(f.store);
    double norm = std::sqrt(SquaredNorm(f.ctx, f.store, chunks));
    EXPECT_NEAR(norm / static_cast<double>(std::sqrt(sum)), 1.0, 1e-13);
    Tensor gradient = f.store.Gradient(4);
    if (dtype == DType::kF64) {
      gradient.data<double>()[14] = std::numeric_limits<double>::quiet_NaN();
    } else {
      gradient.data<float>()[14] = std::numeric_limits<float>::infinity();
    }
    EXPECT_FALSE(std::isfinite(std::sqrt(SquaredNorm(f.ctx, f.store, chunks))));
  }
}

TEST(GradientNorm, ClipsAsPyTorchDoes) {
  EXPECT_EQ(ClipFactor(10.0, 0.0), 1.0);
  EXPECT_EQ(ClipFactor(0.5, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(ClipFactor(4.0, 1.0), 1.0 / (4.0 + 1e-6));
}

TEST(Optimizer, StateBytesAreWhatIsAllocated) {
  for (DType dtype : {DType::kF64, DType::kF32, DType::kBF16}) {
    Fixture f({{.name = "w", .shape = {64, 32}}, {.name = "r", .shape = {32}, .fp32 = true}},
              dtype);
    int64_t planned = OptimizerStateBytes(Config(), f.store), real = 0;
    for (const OptimizerSlot& slot : f.Make(Config())->Slots()) {
      for (const Tensor& t : slot.buckets) real += t.defined() ? t.bytes() : 0;
    }
    EXPECT_EQ(planned, real) << Name(dtype);
  }
}

TEST(Optimizer, RefusesImpossibleBetas) {
  Fixture f(MixedSpecs(), DType::kF32);
  auto config = Config();
  config.set_beta2(1.0);
  auto optimizer = MakeOptimizer(config, f.store, f.allocator);
  EXPECT_EQ(optimizer.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace cadre
