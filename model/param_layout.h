// Between a parameter's elements as a rank holds them and the elements of the stored Hugging Face
// tensors that they are. Initialization, import, export, checkpoints and resharding all go through
// the runs given here. Pure functions, callable from any thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "core/parameters.h"

namespace cadre {

// Elements [begin, begin + values.numel()) of a rank's flat parameter, in any floating dtype: a
// whole parameter, or a shard of one.
struct ParamPiece {
  ParamId param = kNoParam;
  int64_t begin = 0;
  Tensor values;
};

// Elements that this rank holds of a source; they follow those of the sources before it.
int64_t BlockElements(const ParamSource& source);

// `count` elements: the i-th is element local + i * local_stride of the rank's flat parameter and
// element stored + i * stored_stride of the whole stored tensor.
struct ParamRun {
  const ParamSource* source = nullptr;
  int64_t stored = 0, stored_stride = 1;
  int64_t local = 0, local_stride = 1;
  int64_t count = 0;
};

// A rectangle of a parameter: its element (i, j) is local + i * columns + j, and in the stored
// tensor stored + i * row_stride + j * column_stride.
struct ParamBand {
  int64_t rows = 0, columns = 0, local = 0;
  int64_t stored = 0, row_stride = 0, column_stride = 0;
};

// A source's block in at most two bands; unused ones have no rows. `local`: its first element.
std::array<ParamBand, 2> BlockBands(const ParamSource& source, int64_t local);

// Ranges of the rank's flat parameter and of the stored tensor, both half-open.
struct ElementWindow {
  int64_t begin, end;
  int64_t stored_begin, stored_end;
};

namespace internal {

// Runs of a band along its rows, over local elements [begin, end).
template <typename Fn>
void ForEachBandRun(const ParamSource& source, const ParamBand& band, int64_t begin, int64_t end,
                    Fn&& fn) {
  int64_t at = std::max(begin, band.local) - band.local;
  int64_t stop = std::min(end, band.local + band.rows * band.columns) - band.local;
  const bool vector = band.columns == 1;
  while (at < stop) {
    const int64_t row = at / band.columns, column = at % band.columns;
    const int64_t count = vector ? stop - at : std::min(stop - at, band.columns - column);
    fn(ParamRun{.source = &source,
                .stored = band.stored + row * band.row_stride + column * band.column_stride,
                .stored_stride = vector ? band.row_stride : band.column_stride,
                .local = band.local + at,
                .count = count});
    at += count;
  }
}

// i in [first, last) with low <= start + i * stride < high, stride > 0.
struct Steps {
  int64_t first, last;
};
inline Steps StepsWithin(int64_t start, int64_t stride, int64_t count, int64_t low, int64_t high) {
  auto at_least = [&](int64_t bound) {
    return bound <= start ? 0 : std::min(count, (bound - start + stride - 1) / stride);
  };
  return {at_least(low), at_least(high)};
}

// Runs of a band in the order of the stored tensor: the longer stride outside.
template <typename Fn>
void ForEachStoredBandRun(const ParamSource& source, const ParamBand& band,
                          const ElementWindow& window, Fn&& fn) {
  if (band.rows == 0 || band.columns == 0) return;
  const bool rows_outside = band.columns > 1 && band.row_stride >= band.column_stride;
  const int64_t outer_count = rows_outside ? band.rows : band.columns;
  const int64_t inner_count = rows_outside ? band.columns : band.rows;
  const int64_t outer_stored = rows_outside ? band.row_stride : band.column_stride;
  const int64_t inner_stored = rows_outside ? band.column_stride : band.row_stride;
  const int64_t outer_local = rows_outside ? band.columns : 1;
  const int64_t inner_local = rows_outside ? 1 : band.columns;
  const int64_t reach = (inner_count - 1) * inner_stored;
  const Steps outer = StepsWithin(band.stored, outer_stored, outer_count,
                                  window.stored_begin - reach, window.stored_end);
  for (int64_t o = outer.first; o < outer.last; ++o) {
    const int64_t stored = band.stored + o * outer_stored, local = band.local + o * outer_local;
    const Steps a =
        StepsWithin(stored, inner_stored, inner_count, window.stored_begin, window.stored_end);
    const Steps b = StepsWithin(local, inner_local, inner_count, window.begin, window.end);
    const int64_t first = std::max(a.first, b.first), last = std::min(a.last, b.last);
    if (first >= last) continue;
    fn(ParamRun{.source = &source,
                .stored = stored + first * inner_stored,
                .stored_stride = inner_stored,
                .local = local + first * inner_local,
                .local_stride = inner_local,
                .count = last - first});
  }
}

}  // namespace internal

// Calls fn(ParamRun) for elements [begin, end) of the rank's flat parameter, each once and in that
// order, in as few runs as the layout allows; local_stride is 1.
template <typename Fn>
void ForEachRun(const ParamSpec& spec, int64_t begin, int64_t end, Fn&& fn) {
  int64_t local = 0;
  for (const ParamSource& source : spec.sources) {
    const int64_t next = local + BlockElements(source);
    if (next > begin && local < end) {
      for (const ParamBand& band : BlockBands(source, local)) {
        internal::ForEachBandRun(source, band, begin, end, fn);
      }
    }
    local = next;
  }
}

// Of one source, whose block begins at element `local`: the runs of those of its elements that lie
// in [begin, end) of the flat parameter and in [stored_begin, stored_end) of the stored tensor, in
// the stored tensor's order within each of the source's bands.
template <typename Fn>
void ForEachStoredRun(const ParamSource& source, int64_t local, const ElementWindow& window,
                      Fn&& fn) {
  for (const ParamBand& band : BlockBands(source, local)) {
    internal::ForEachStoredBandRun(source, band, window, fn);
  }
}

// to[i * to_stride] = from[i * from_stride] for elements of `width` bytes (1, 2, 4 or 8), which
// need no alignment and do not overlap.
struct StridedCopy {
  size_t width = 0;
  int64_t count = 0;
  int64_t from_stride = 1, to_stride = 1;
};
void CopyElements(const StridedCopy& copy, const std::byte* from, std::byte* to);

// The same between floating types, by way of fp32 unless `to` is f64.
struct StridedConversion {
  DType from = DType::kF32, to = DType::kF32;
  int64_t count = 0;
  int64_t from_stride = 1, to_stride = 1;
};
void ConvertElements(const StridedConversion& conversion, const std::byte* from, std::byte* to);

}  // namespace cadre
