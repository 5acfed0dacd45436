#include "model/param_layout.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace cadre {
namespace {

using Layout = ParamSource::Layout;

struct Random {
  std::mt19937_64 engine;
  int64_t In(int64_t low, int64_t high) {  // both included
    return std::uniform_int_distribution<int64_t>(low, high)(engine);
  }
  std::vector<int64_t> Cuts(int64_t n) {  // from 0 to n
    std::vector<int64_t> cuts = {0, n};
    for (int64_t i = In(0, 3); i > 0; --i) cuts.push_back(In(0, n));
    std::sort(cuts.begin(), cuts.end());
    return cuts;
  }
};

// What the layouts mean, said plainly: the stored element of logical (row, column).
int64_t StoredElement(const ParamSource& source, int64_t row, int64_t column, int64_t rows,
                      int64_t columns) {
  const int64_t base = source.index < 0 ? 0 : source.index * rows * columns;
  const int64_t half = rows / 2, paired = row < half ? 2 * row : 2 * (row - half) + 1;
  switch (source.layout) {
    case Layout::kPlain:
      return base + row * columns + column;
    case Layout::kTransposed:
      return base + column * rows + row;
    case Layout::kTransposedInterleaved:
      return base + column * rows + paired;
    case Layout::kInterleavedVector:
      return base + paired;
  }
  __builtin_unreachable();
}

struct Whole {
  ParamSource source;
  int64_t rows, columns;  // logical
};

Whole RandomWhole(Random& random) {
  const auto layout = static_cast<Layout>(random.In(0, 3));
  int64_t rows = random.In(1, 9), columns = random.In(1, 9);
  if (layout >= Layout::kTransposedInterleaved) rows *= 2;
  const bool vector =
      layout == Layout::kInterleavedVector || (layout == Layout::kPlain && random.In(0, 2) == 0);
  if (vector) columns = 1;
  std::vector<int64_t> dims;
  int64_t index = -1;
  if (random.In(0, 1) == 1) {
    dims.push_back(random.In(1, 4));
    index = random.In(0, dims[0] - 1);
  }
  if (vector) {
    dims.push_back(rows);
  } else if (layout == Layout::kPlain) {
    dims.insert(dims.end(), {rows, columns});
  } else {
    dims.insert(dims.end(), {columns, rows});
  }
  return {{.tensor = "t", .shape = Shape(dims), .index = index, .layout = layout}, rows, columns};
}

// All of a source, cut into a grid, each rectangle a parameter of its own.
TEST(ParamLayout, AnyGridHoldsEveryElementOnce) {
  Random random{std::mt19937_64(11)};
  for (int trial = 0; trial < 400; ++trial) {
    const Whole whole = RandomWhole(random);
    std::map<int64_t, int> seen;
    const std::vector<int64_t> rows = random.Cuts(whole.rows), columns = random.Cuts(whole.columns);
    for (size_t r = 0; r + 1 < rows.size(); ++r) {
      for (size_t c = 0; c + 1 < columns.size(); ++c) {
        ParamSpec spec{.sources = {whole.source}};
        spec.sources[0].block = {rows[r], rows[r + 1] - rows[r], columns[c],
                                 columns[c + 1] - columns[c]};
        const int64_t numel = BlockElements(spec.sources[0]), width = columns[c + 1] - columns[c];
        int64_t next = 0;
        // Flat cuts of a slice, as ZeRO makes them.
        std::vector<int64_t> flat = random.Cuts(numel);
        for (size_t f = 0; f + 1 < flat.size(); ++f) {
          ForEachRun(spec, flat[f], flat[f + 1], [&](const ParamRun& run) {
            ASSERT_EQ(run.local, next);
            ASSERT_GT(run.count, 0);
            for (int64_t i = 0; i < run.count; ++i, ++next) {
              const int64_t stored = run.stored + i * run.stored_stride;
              ASSERT_EQ(stored,
                        StoredElement(whole.source, rows[r] + next / width,
                                      columns[c] + next % width, whole.rows, whole.columns));
              ++seen[stored];
            }
          });
        }
        ASSERT_EQ(next, numel);
      }
    }
    const int64_t base = std::max<int64_t>(0, whole.source.index) * whole.rows * whole.columns;
    ASSERT_EQ(static_cast<int64_t>(seen.size()), whole.rows * whole.columns);
    for (const auto& [stored, times] : seen) {
      ASSERT_EQ(times, 1);
      ASSERT_GE(stored, base);
      ASSERT_LT(stored, base + whole.rows * whole.columns);
    }
  }
}

// Windows of the stored tensor find the same pairs as walking the parameter does.
TEST(ParamLayout, StoredWindowsFindTheSameElements) {
  Random random{std::mt19937_64(12)};
  for (int trial = 0; trial < 400; ++trial) {
    ParamSpec spec;
    for (int64_t i = random.In(1, 3); i > 0; --i) {
      Whole whole = RandomWhole(random);
      const int64_t row = random.In(0, whole.rows), column = random.In(0, whole.columns);
      whole.source.block = {row, random.In(0, whole.rows - row), column,
                            random.In(0, whole.columns - column)};
      spec.sources.push_back(whole.source);
    }
    int64_t local = 0;
    for (const ParamSource& source : spec.sources) {
      const int64_t end = local + BlockElements(source);
      const int64_t from = random.In(0, end + 3), to = random.In(from, end + 5);
      std::map<int64_t, int64_t> expected, found;
      ForEachRun(spec, std::max(from, local), std::min(to, end), [&](const ParamRun& run) {
        for (int64_t i = 0; i < run.count; ++i) {
          expected[run.stored + i * run.stored_stride] = run.local + i;
        }
      });
      const std::vector<int64_t> windows = random.Cuts(source.shape.numel());
      for (size_t w = 0; w + 1 < windows.size(); ++w) {
        const ElementWindow window{from, to, windows[w], windows[w + 1]};
        ForEachStoredRun(source, local, window, [&](const ParamRun& run) {
          for (int64_t i = 0; i < run.count; ++i) {
            const int64_t stored = run.stored + i * run.stored_stride;
            ASSERT_GE(stored, windows[w]);
            ASSERT_LT(stored, windows[w + 1]);
            ASSERT_TRUE(found.emplace(stored, run.local + i * run.local_stride).second);
          }
        });
      }
      ASSERT_EQ(found, expected);
      local = end;
    }
  }
}

TEST(ParamLayout, CopiesStridedElementsOfAnyWidth) {
  std::vector<std::byte> from(64), to(64), expected(64);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i + 1);
  for (size_t width : {1, 2, 4, 8}) {
    std::fill(to.begin(), to.end(), std::byte{0});
    std::fill(expected.begin(), expected.end(), std::byte{0});
    for (size_t i = 0; i < 3; ++i) {
      std::copy_n(from.begin() + 2 * i * width, width, expected.begin() + i * width);
    }
    CopyElements({.width = width, .count = 3, .from_stride = 2}, from.data(), to.data());
    EXPECT_EQ(to, expected) << width;
  }
}

TEST(ParamLayout, FewRuns) {
  auto runs = [](const ParamSource& source) {
    ParamSpec spec{.sources = {source}};
    int count = 0;
    ForEachRun(spec, 0, BlockElements(source), [&](const ParamRun&) { ++count; });
    return count;
  };
  EXPECT_EQ(runs({"t", {6, 8}}), 1);
  EXPECT_EQ(runs({"t", {6, 8}, -1, Layout::kPlain, {.row_begin = 2, .rows = 3}}), 1);
  EXPECT_EQ(runs({"t", {6, 8}, -1, Layout::kPlain, {.column_begin = 2, .columns = 3}}), 6);
  EXPECT_EQ(runs({"t", {6, 8}, -1, Layout::kTransposed}), 8);
  EXPECT_EQ(runs({"t", {8}, -1, Layout::kInterleavedVector}), 2);
}

}  // namespace
}  // namespace cadre
