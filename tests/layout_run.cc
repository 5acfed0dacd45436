#include "tests/layout_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>

#include <gtest/gtest.h>

#include "model/param_layout.h"
#include "parallel/test_ranks.h"
#include "tests/training_run.h"
#include "training/layout_needs.h"

namespace cadre::testing_run {
namespace {

// Puts what a rank owns of the gradients into the whole, element by element of the stored tensors.
void Collect(const ParameterStore& store, const std::vector<Shard>& owned, LayoutRun* run) {
  for (ParamId id = 0; id < store.size(); ++id) {
    if (!store.WantsGradient(id)) continue;
    const ParamSpec& spec = store.spec(id);
    for (const ParamSource& source : spec.sources) {
      run->gradients[source.tensor].resize(static_cast<size_t>(source.shape.numel()));
    }
    const int b = store.bucket_of(id);
    const ParamBucket& bucket = store.buckets()[static_cast<size_t>(b)];
    const int64_t first = store.offset_of(id);
    const Shard part = owned[static_cast<size_t>(b)];
    const int64_t begin = std::clamp<int64_t>(part.begin - first, 0, spec.shape.numel());
    const int64_t end = std::clamp<int64_t>(part.end() - first, begin, spec.shape.numel());
    ForEachRun(spec, begin, end, [&](const ParamRun& r) {
      std::vector<double>& all = run->gradients[r.source->tensor];
      for (int64_t i = 0; i < r.count; ++i) {
        const int64_t at = first + r.local + i * r.local_stride - bucket.parts.gradients.begin;
        all[static_cast<size_t>(r.stored + i * r.stored_stride)] =
            bucket.gradients.dtype() == DType::kF64 ? bucket.gradients.data<double>()[at]
                                                    : bucket.gradients.data<float>()[at];
      }
    });
  }
}

// `gap`, or the relative difference of two losses where that is larger.
double Larger(double gap, double expected, double got) {
  const double relative = std::abs(expected - got) / std::abs(expected);
  return std::isnan(gap) || relative <= gap ? gap : relative;
}

}  // namespace

LayoutRun TrainUnder(const config::TrainConfig& config, int world, const std::string& output,
                     const Fault& fault) {
  const auto spec = ResolveModelConfig(config.model());
  CADRE_CHECK(spec.ok(), "{}", Message(spec.status()));
  LayoutRun run{.spec = *spec};
  std::mutex mutex;
  const auto train = [&](World* ranks) {
    TrainerOptions options;
    options.world = ranks;
    const bool faulty = fault.kind != Fault::Kind::kNone;
    if (faulty) {
      const auto layout = LayoutOfRun(config, world);
      ASSERT_TRUE(layout.ok()) << Message(layout.status());
      options.wrap_group = Spoil(fault, *ranks, *layout);
    }
    options.inspect_gradients = [&](int64_t step, ParameterStore& store,
                                    const std::vector<Shard>& owned) {
      const std::lock_guard lock(mutex);
      if (step == 0) Collect(store, owned, &run);
    };
    options.inspect_routing = [&](int64_t step, const RoutedTokens& routed) {
      const std::lock_guard lock(mutex);
      LogRouting(run.spec, step, routed, &run.routing);
    };
    auto trainer = OpenRun(config, output, 1, options);
    ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
    const absl::Status status = (*trainer)->Run();
    ASSERT_TRUE(status.ok()) << Message(status);
    const std::lock_guard lock(mutex);
    if (run.losses.empty()) {
      run.losses = (*trainer)->losses();
      run.evaluations = (*trainer)->evaluations();
    }
    if (!faulty) {
      EXPECT_EQ(run.losses, (*trainer)->losses());
      EXPECT_EQ(run.evaluations, (*trainer)->evaluations());
    }
  };
  if (world == 1) {
    train(nullptr);
  } else {
    // A fault that has ranks wait for one another ends soon.
    const auto timeout = std::chrono::minutes(fault.kind == Fault::Kind::kNone ? 10 : 1);
    RunRanks(world, [&](World& ranks) { train(&ranks); }, {.timeout = timeout});
  }
  return run;
}

std::vector<absl::Status> LoseRankOne(const config::TrainConfig& config, int world,
                                      const std::string& output) {
  std::vector<absl::Status> ended;
  std::mutex mutex;
  RunRanks(world, [&](World& ranks) {
    TrainerOptions options;
    options.world = &ranks;
    auto trainer = OpenRun(config, output, 1, options);
    ASSERT_TRUE(trainer.ok()) << Message(trainer.status());
    if (ranks.rank() == 1) return;
    const absl::Status status = (*trainer)->Run();
    const std::lock_guard lock(mutex);
    ended.push_back(status);
  });
  return ended;
}

Gap LargestGap(const LayoutRun& expected, const LayoutRun& got) {
  Gap gap;
  EXPECT_EQ(expected.gradients.size(), got.gradients.size());
  for (const auto& [name, values] : expected.gradients) {
    const auto found = got.gradients.find(name);
    if (found == got.gradients.end() || found->second.size() != values.size()) {
      ADD_FAILURE() << "no gradient of " << name;
      continue;
    }
    double difference = 0, norm = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      difference += std::pow(values[i] - found->second[i], 2);
      norm += std::pow(values[i], 2);
    }
    const double relative = std::sqrt(difference / std::max(norm, 1e-300));
    if (!(relative <= gap.relative)) gap = {relative, name};
    if (std::isnan(relative)) break;
  }
  return gap;
}

double LargestLossGap(const LayoutRun& expected, const LayoutRun& got, size_t steps) {
  EXPECT_EQ(expected.losses.size(), got.losses.size());
  double gap = 0;
  for (size_t i = 0; i < std::min({expected.losses.size(), got.losses.size(), steps}); ++i) {
    gap = Larger(gap, expected.losses[i], got.losses[i]);
  }
  return gap;
}

double LargestEvaluationGap(const LayoutRun& expected, const LayoutRun& got) {
  EXPECT_FALSE(expected.evaluations.empty());
  double gap = 0;
  for (const auto& [step, loss] : expected.evaluations) {
    const auto found = got.evaluations.find(step);
    gap = Larger(gap, loss, found == got.evaluations.end() ? NAN : found->second);
  }
  return gap;
}

}  // namespace cadre::testing_run
