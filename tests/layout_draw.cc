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

// More often where there is more to draw.
int LayoutDraw::AnyWorld() { return OneOf({1, 2, 3, 4, 4, 5, 6, 6, 6, 7, 8, 8, 8}); }

int LayoutDraw::Divisor(int n) {
  std::vector<int> divisors;
  for (int d = 1; d <= n; ++d) {
    if (n % d == 0) divisors.push_back(d);
  }
  return divisors[engine_() % divisors.size()];
}

std::string LayoutDraw::Pipeline(int ranks, int layers) {
  if (ranks == 1) return "";
  const bool pairs = OneOf({true, false, false});  // of stages on each rank
  const std::string_view schedule = pairs ? OneOf<std::string_view>({"interleaved_1f1b", "zb_v"})
                                          : OneOf<std::string_view>({"gpipe", "1f1b", "zb_h1"});
  const bool split = pairs || ranks > 2 || OneOf({true, false});
  return fmt::format(", pipeline_parallel_size: {}, pipeline_schedule: {}{}", ranks, schedule,
                     split ? Split(layers, pairs ? 2 * ranks : ranks) : "");
}

std::string LayoutDraw::Parallel(int world, int layers) {
  const int pp = OneOf({true, false}) ? Divisor(world) : 1, mesh = world / pp;
  const int tp = Divisor(mesh), cp = OneOf({true, false}) ? Divisor(mesh / tp) : 1;
  const int etp = OneOf({true, false}) ? Divisor(mesh) : tp;
  const int ep = OneOf({true, false}) ? Divisor(mesh / etp) : 1;
  std::string fields = fmt::format(
      "tensor_parallel_size: {}, context_parallel_size: {}, zero_stage: {}, sequence_parallel: {}",
      tp, cp, OneOf({0, 1, 2, 3}), OneOf({"true", "true", "false"}));
  if (etp != tp || ep > 1) {
    fields += fmt::format(", expert_parallel_size: {}, expert_tensor_parallel_size: {}", ep, etp);
  }
  if (OneOf({true, false})) fields += ", context_parallel_method: ring";
  if (OneOf({true, false, false})) {
    fields += fmt::format(", zero_group_size: {}", Divisor(mesh / tp));
  }
  return fields + Pipeline(pp, layers);
}

Case LayoutDraw::Under(const Case& c, int world) {
  const int layers = runs_.Config(c, "f64").model().num_hidden_layers();
  for (int worlds = 0; worlds < 100; ++worlds) {
    const int ranks = world != 0 ? world : AnyWorld();
    for (int i = 0; i < 100; ++i) {
      const Case drawn = {c.model, ranks, Parallel(ranks, layers), c.batch};
      if (Accepted(drawn)) return drawn;
    }
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
  const int world = AnyWorld();
  // Samples that so many ranks can share.
  const int samples = world == 5 ? 10 : world == 7 ? 14 : world % 3 == 0 ? 12 : 8;
  return Under({std::string(model), world, "", {samples, OneOf({32, 48})}}, world);
}

}  // namespace cadre::testing_run
