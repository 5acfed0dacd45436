#include "tests/layout_draw.h"

#include <cstdio>
#include <numeric>
#include <vector>

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "training/layout_needs.h"

namespace cadre::testing_run {

void Say(const std::string& line) {
  std::puts(line.c_str());
  std::fflush(stdout);
}

uint32_t SeedOfDraws() {
  const auto given = static_cast<uint32_t>(GTEST_FLAG_GET(random_seed));
  // What the flag takes.
  const uint32_t seed = given != 0 ? given : std::random_device()() % 99999 + 1;
  Say(fmt::format("--gtest_random_seed={}", seed));
  return seed;
}

bool LayoutDraw::Accepted(const Case& c) const {
  return LayoutOfRun(runs_.Config(c, "f64"), c.world).ok();
}

std::string LayoutDraw::Split(int layers, int stages) {
  // Only the first and the last stage may hold none.
  std::vector<int> split(static_cast<size_t>(stages), 1);
  split.front() = OneOf({0, 1});
  split.back() = OneOf({0, 1});
  for (int placed = std::accumulate(split.begin(), split.end(), 0); placed < layers; ++placed) {
    ++split[engine_() % split.size()];
  }
  return fmt::format(", pipeline_split: [{}]", fmt::join(split, ", "));
}

std::string LayoutDraw::Pipeline(int layers) {
  const int ranks = OneOf({1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6, 7});
  if (ranks == 1) return "";
  const bool pairs = OneOf({true, false, false});  // of stages on each rank
  const std::string_view schedule = pairs ? OneOf<std::string_view>({"interleaved_1f1b", "zb_v"})
                                          : OneOf<std::string_view>({"gpipe", "1f1b", "zb_h1"});
  const bool split = pairs || ranks > 2 || OneOf({true, false});
  return fmt::format(", pipeline_parallel_size: {}, pipeline_schedule: {}{}", ranks, schedule,
                     split ? Split(layers, pairs ? 2 * ranks : ranks) : "");
}

std::string LayoutDraw::Parallel(int layers) {
  std::string fields = fmt::format(
      "tensor_parallel_size: {}, context_parallel_size: {}, expert_parallel_size: {}, "
      "zero_stage: {}, sequence_parallel: {}",
      OneOf({1, 1, 1, 2, 3, 4, 6}), OneOf({1, 1, 1, 2, 3, 4}), OneOf({1, 2, 3, 4, 6, 8}),
      OneOf({0, 1, 2, 3}), OneOf({"true", "true", "false"}));
  if (OneOf({true, false})) {
    fields += fmt::format(", expert_tensor_parallel_size: {}", OneOf({1, 2, 3}));
  }
  if (OneOf({true, false})) fields += ", context_parallel_method: ring";
  if (OneOf({true, false, false})) fields += fmt::format(", zero_group_size: {}", OneOf({2, 3, 4}));
  return fields + Pipeline(layers);
}

Case LayoutDraw::Under(const Case& c, int world) {
  const int layers = runs_.Config(c, "f64").model().num_hidden_layers();
  for (int i = 0; i < 10000; ++i) {
    const int ranks = world != 0 ? world : OneOf({1, 2, 3, 4, 5, 6, 7, 8});
    Case drawn = {c.model, ranks, ranks == 1 ? "" : Parallel(layers), c.batch};
    if (Accepted(drawn)) return drawn;
  }
  CADRE_CHECK(false, "{}: no layout of {} ranks was accepted", c.model, world);
}

Case LayoutDraw::Next(std::string_view model) {
  // Not "moe-capped": what a capacity drops is a layout's own.
  if (model.empty()) {
    model = OneOf<std::string_view>({"dense", "tied", "rungs", "dense/ladder", "moe", "norms",
                                     "oss", "bias", "bias/ladder", "deep", "sixes", "sixes/ladder",
                                     "sixes-moe", "sixes-bias"});
  }
  // More often where there is more to draw.
  const int world = OneOf({1, 2, 3, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8});
  // Samples that so many ranks can share.
  const int samples = world == 5 ? 10 : world == 7 ? 14 : world % 3 == 0 ? 12 : 8;
  return Under({std::string(model), world, "", {samples, OneOf({32, 48})}}, world);
}

}  // namespace cadre::testing_run
