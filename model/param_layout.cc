#include "model/param_layout.h"

#include <cstring>
#include <type_traits>
#include <utility>

#include "core/status.h"

namespace cadre {
namespace {

using Layout = ParamSource::Layout;

// A source as [rows, columns] after index and layout.
struct Logical {
  int64_t rows = 1, columns = 1;
};

Logical LogicalForm(const ParamSource& source) {
  const int begin = source.index < 0 ? 0 : 1;
  const int rank = source.shape.rank() - begin;
  int64_t elements = 1;
  for (int axis = begin; axis < source.shape.rank(); ++axis) elements *= source.shape[axis];
  if (source.layout == Layout::kInterleavedVector || rank <= 1) return {elements, 1};
  const int64_t last = source.shape[-1];
  const int64_t others = last == 0 ? 0 : elements / last;
  if (source.layout == Layout::kPlain) return {others, last};
  return {last, others};
}

ParamBlock Resolved(const ParamSource& source) {
  const Logical whole = LogicalForm(source);
  ParamBlock block = source.block;
  if (block.rows < 0) block.rows = whole.rows - block.row_begin;
  if (block.columns < 0) block.columns = whole.columns - block.column_begin;
  CADRE_CHECK(block.row_begin >= 0 && block.rows >= 0 && block.column_begin >= 0 &&
                  block.columns >= 0 && block.row_begin + block.rows <= whole.rows &&
                  block.column_begin + block.columns <= whole.columns,
              "{}: rows {} + {}, columns {} + {} of [{}, {}]", source.tensor, block.row_begin,
              block.rows, block.column_begin, block.columns, whole.rows, whole.columns);
  return block;
}

template <size_t kWidth>
void Copy(const StridedCopy& copy, const std::byte* from, std::byte* to) {
  for (int64_t i = 0; i < copy.count; ++i) {
    std::memcpy(to + i * copy.to_stride * static_cast<int64_t>(kWidth),
                from + i * copy.from_stride * static_cast<int64_t>(kWidth), kWidth);
  }
}

template <typename From, typename To>
void Convert(const StridedConversion& conversion, const std::byte* from, std::byte* to) {
  constexpr auto kFrom = static_cast<int64_t>(sizeof(From));
  constexpr auto kTo = static_cast<int64_t>(sizeof(To));
  for (int64_t i = 0; i < conversion.count; ++i) {
    From value;
    std::memcpy(&value, from + i * conversion.from_stride * kFrom, sizeof(value));
    To converted;
    if constexpr (std::is_same_v<To, double>) {
      converted = static_cast<double>(value);
    } else {
      converted = static_cast<To>(static_cast<float>(value));
    }
    std::memcpy(to + i * conversion.to_stride * kTo, &converted, sizeof(converted));
  }
}

}  // namespace

int64_t BlockElements(const ParamSource& source) {
  const ParamBlock block = Resolved(source);
  return block.rows * block.columns;
}

std::array<ParamBand, 2> BlockBands(const ParamSource& source, int64_t local) {
  const ParamBlock block = Resolved(source);
  const Logical whole = LogicalForm(source);
  const int64_t base = source.index < 0 ? 0 : source.index * whole.rows * whole.columns;
  const bool interleaved = source.layout == Layout::kTransposedInterleaved ||
                           source.layout == Layout::kInterleavedVector;
  const bool plain = source.layout == Layout::kPlain;
  const int64_t row_stride = plain ? whole.columns : interleaved ? 2 : 1;
  const int64_t column_stride = plain ? 1 : whole.rows;
  auto band = [&](int64_t row, int64_t rows, int64_t stored_row) {
    ParamBand result{.rows = std::max<int64_t>(0, rows),
                     .columns = block.columns,
                     .local = local + (row - block.row_begin) * block.columns,
                     .stored = base + stored_row + block.column_begin * column_stride,
                     .row_stride = row_stride,
                     .column_stride = column_stride};
    // Rows that follow one another as columns do are one column.
    if (result.rows == 1 || row_stride == result.columns * column_stride) {
      result.rows *= std::exchange(result.columns, 1);
      result.row_stride = column_stride;
    }
    return result;
  };
  const int64_t begin = block.row_begin, end = begin + block.rows;
  if (!interleaved) return {band(begin, block.rows, begin * row_stride), ParamBand()};
  // Gate rows are the even ones as stored, up rows the odd ones.
  const int64_t half = whole.rows / 2, up = std::max(begin, half);
  return {band(begin, std::min(end, half) - begin, 2 * begin),
          band(up, end - up, 2 * (up - half) + 1)};
}

void CopyElements(const StridedCopy& copy, const std::byte* from, std::byte* to) {
  if (copy.from_stride == 1 && copy.to_stride == 1) {
    std::memcpy(to, from, static_cast<size_t>(copy.count) * copy.width);
    return;
  }
  switch (copy.width) {
    case 1:
      return Copy<1>(copy, from, to);
    case 2:
      return Copy<2>(copy, from, to);
    case 4:
      return Copy<4>(copy, from, to);
    case 8:
      return Copy<8>(copy, from, to);
    default:
      CADRE_CHECK(false, "elements of {} bytes", copy.width);
  }
}

void ConvertElements(const StridedConversion& conversion, const std::byte* from, std::byte* to) {
  if (conversion.from == conversion.to) {
    return CopyElements(
        {SizeOf(conversion.to), conversion.count, conversion.from_stride, conversion.to_stride},
        from, to);
  }
  VisitFloat(conversion.from, [&]<typename From>(From) {
    VisitFloat(conversion.to, [&]<typename To>(To) { Convert<From, To>(conversion, from, to); });
  });
}

}  // namespace cadre
