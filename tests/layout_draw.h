// Layouts that nobody wrote down: drawn at random from those that a run accepts.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <string>
#include <string_view>

#include "tests/layout_cases.h"

namespace cadre::testing_run {

// A line on stdout, there even if the program ends right after it.
void Say(const std::string& line);

// Says what it draws from: the seed that --gtest_random_seed names, a new one without it.
uint32_t SeedOfDraws();

// The same seed draws the same.
class LayoutDraw {
 public:
  // runs: outlives the draw.
  LayoutDraw(const Runs& runs, uint32_t seed) : runs_(runs), engine_(seed) {}

  // Any model and batch on 1 to 8 ranks. An empty model: any.
  Case Next(std::string_view model = "");
  // Another layout of what the case trains. world 0: on 1 to 8 ranks.
  Case Under(const Case& c, int world = 0);

 private:
  template <typename T>
  T OneOf(std::initializer_list<T> values) {
    return *(values.begin() + static_cast<std::ptrdiff_t>(engine_() % values.size()));
  }
  bool Accepted(const Case& c) const;
  int AnyWorld();
  int Divisor(int n);  // any of n's
  // Fields that may fit neither one another nor the model.
  std::string Parallel(int world, int layers);
  std::string Pipeline(int ranks, int layers);
  std::string Split(int layers, int stages);

  const Runs& runs_;
  std::mt19937 engine_;
};

}  // namespace cadre::testing_run
