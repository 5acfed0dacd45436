#include "model/param_layout.h"

#include <cstring>

namespace cadre {
namespace {

using Layout = ParamSource::Layout;

// The slice as stored, seen as a matrix.
struct Matrix {
  int64_t rows = 1;
  int64_t columns = 1;
};

Matrix SliceMatrix(const ParamSource& source) {
  Matrix m{.rows = 1, .columns = source.shape[-1]};
  m.rows = SliceElements(source) / m.columns;
  return m;
}

// Calls copy(stored element, logical element) for every element, logical ones in order.
template <typename Copy>
void ForEach(const ParamSource& source, Copy&& copy) {
  Matrix m = SliceMatrix(source);
  bool interleaved = source.layout != Layout::kTransposed;
  if (source.layout == Layout::kInterleavedVector) m = {.rows = 1, .columns = m.columns};
  int64_t logical = 0, half = m.columns / 2;
  for (int64_t row = 0; row < m.columns; ++row) {
    int64_t column = !interleaved ? row : row < half ? 2 * row : 2 * (row - half) + 1;
    for (int64_t i = 0; i < m.rows; ++i) copy(i * m.columns + column, logical++);
  }
}

template <size_t kWidth>
void Permute(const ParamSource& source, const std::byte* from, std::byte* to, bool to_logical) {
  ForEach(source, [&](int64_t stored, int64_t logical) {
    int64_t read = to_logical ? stored : logical, write = to_logical ? logical : stored;
    std::memcpy(to + write * kWidth, from + read * kWidth, kWidth);
  });
}

void Move(const ParamSource& source, size_t width, const std::byte* from, std::byte* to,
          bool to_logical) {
  if (source.layout == Layout::kPlain) {
    std::memcpy(to, from, static_cast<size_t>(SliceElements(source)) * width);
    return;
  }
  switch (width) {
    case 1:
      return Permute<1>(source, from, to, to_logical);
    case 2:
      return Permute<2>(source, from, to, to_logical);
    case 4:
      return Permute<4>(source, from, to, to_logical);
    case 8:
      return Permute<8>(source, from, to, to_logical);
    default:
      CADRE_CHECK(false, "elements of {} bytes", width);
  }
}

}  // namespace

int64_t SliceElements(const ParamSource& source) {
  int64_t whole = source.shape.numel();
  return source.index < 0 ? whole : whole / source.shape[0];
}

int64_t SliceBegin(const ParamSource& source) {
  return source.index < 0 ? 0 : source.index * SliceElements(source);
}

void StoredToLogical(const ParamSource& source, size_t width, const std::byte* stored,
                     std::byte* logical) {
  Move(source, width, stored, logical, true);
}

void LogicalToStored(const ParamSource& source, size_t width, const std::byte* logical,
                     std::byte* stored) {
  Move(source, width, logical, stored, false);
}

}  // namespace cadre
