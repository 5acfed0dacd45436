// Layouts that nobody wrote down: any that a run accepts, drawn at random, agree with one process.
#include <random>

#include <gtest/gtest.h>

#include "tests/layout_cases.h"
#include "training/layout_needs.h"

namespace cadre::testing_run {
namespace {

class Draw {
 public:
  explicit Draw(uint32_t seed) : engine_(seed) {}

  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return *(values.begin() + static_cast<std::ptrdiff_t>(engine_() % values.size()));
  }

  // Fields that may fit neither one another nor the model.
  std::string Parallel() {
    std::string fields = fmt::format(
        "tensor_parallel_size: {}, context_parallel_size: {}, expert_parallel_size: {}, "
        "zero_stage: {}, sequence_parallel: {}",
        OneOf({1, 1, 2, 4}), OneOf({1, 1, 2}), OneOf({1, 1, 2, 4}), OneOf({0, 1, 2, 3}),
        OneOf({"true", "true", "false"}));
    if (OneOf({true, false})) {
      fields += fmt::format(", expert_tensor_parallel_size: {}", OneOf({1, 2}));
    }
    if (OneOf({true, false})) fields += ", context_parallel_method: ring";
    if (OneOf({true, false, false})) fields += fmt::format(", zero_group_size: {}", OneOf({2, 4}));
    switch (OneOf({0, 0, 1, 2, 3})) {
      case 1:
        return fields + ", pipeline_parallel_size: 2, pipeline_schedule: " +
               OneOf({"gpipe", "1f1b", "zb_h1"});
      case 2:
        return fields +
               ", pipeline_parallel_size: 2, pipeline_split: [0, 1, 1, 0], "
               "pipeline_schedule: " +
               OneOf({"interleaved_1f1b", "zb_v"});
      case 3:
        return fields +
               ", pipeline_parallel_size: 4, pipeline_split: [0, 1, 1, 0], "
               "pipeline_schedule: " +
               OneOf({"1f1b", "zb_h1"});
      default:
        return fields;
    }
  }

 private:
  std::mt19937 engine_;
};

void CompareAtRandom(int layouts) {
  const uint32_t seed = std::random_device()();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  Draw draw(seed);
  Runs runs;
  int accepted = 0;
  for (int drawn = 0; accepted < layouts && drawn < 2000; ++drawn) {
    // Not "moe-capped": what a capacity drops is a layout's own.
    const std::string model = draw.OneOf(
        {"dense", "tied", "rungs", "dense/ladder", "moe", "norms", "oss", "bias", "bias/ladder"});
    const std::string parallel = draw.Parallel();
    const int world = draw.OneOf({2, 4, 8});
    if (!LayoutOfRun(runs.Config(model, "f64", parallel), world).ok()) continue;
    ++accepted;
    SCOPED_TRACE(fmt::format("{} on {} ranks {{{}}}", model, world, parallel));
    std::printf("%s on %d ranks {%s}\n", model.c_str(), world, parallel.c_str());
    const LayoutRun& expected = runs.Reference(model, "f64");
    const LayoutRun got = runs.Train(model, "f64", world, parallel);
    const Gap gap = LargestGap(expected, got);
    EXPECT_LE(gap.relative, 1e-10) << gap.parameter;
    EXPECT_LE(LargestLossGap(expected, got), 1e-9);
  }
  EXPECT_EQ(accepted, layouts);
}

TEST(RandomLayouts, AgreeWithOneProcess) { CompareAtRandom(3); }
TEST(FullRandomLayouts, AgreeWithOneProcess) { CompareAtRandom(16); }

}  // namespace
}  // namespace cadre::testing_run
